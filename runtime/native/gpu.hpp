// A GPU and what is owned on it. Everything throws std::runtime_error, with the driver's sentence, when a call of the driver fails.
#pragma once
#include <memory>
#include <string>
#include <utility>

#include "cuda_api.hpp"

namespace slipway {

class Gpu {
 public:
  explicit Gpu(const CudaApi& api);  // the first one there is
  ~Gpu();
  Gpu(const Gpu&) = delete;

  const CudaApi& api() const { return api_; }
  CuStream stream() const { return stream_; }
  CuContext context() const { return context_; }
  void make_current() const { check(api_.set_current(context_), "the context"); }  // for a thread that is to call the driver
  void synchronize() const { check(api_.synchronize(stream_), "a step"); }
  void check(CuResult result, const std::string& what) const;

 private:
  struct Context {  // retained while it lives
    explicit Context(const CudaApi& api) : api(api) {}
    ~Context() {
      if (handle) api.release_primary_context(0);
    }
    const CudaApi& api;
    CuContext handle = nullptr;
  };

  const CudaApi& api_;
  Context owned_;
  CuContext context_ = nullptr;
  CuStream stream_ = nullptr;
};

// What the driver made and one function of its table takes back.
template <class Handle> class Owned {
 public:
  using Destroy = CuResult (*)(Handle);
  Owned() = default;
  Owned(Handle handle, Destroy destroy) : handle_(handle), destroy_(destroy) {}
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)), destroy_(other.destroy_) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    std::swap(destroy_, other.destroy_);
    return *this;
  }
  ~Owned() {
    if (handle_) destroy_(handle_);
  }
  Handle get() const { return handle_; }
  explicit operator bool() const { return handle_; }

 private:
  Handle handle_ = nullptr;
  Destroy destroy_ = nullptr;
};

Owned<CuEvent> make_event(const Gpu& gpu);
Owned<CuModule> load_module(const Gpu& gpu, const std::string& path);
CuFunction find_function(const Gpu& gpu, CuModule module, const std::string& name, int shared_bytes);

// What is launched on the GPU's stream by `work`, as a graph.
template <class Work> Owned<CuGraphExec> capture(const Gpu& gpu, const Work& work) {
  const CudaApi& api = gpu.api();
  CuGraph captured = nullptr;
  CuGraphExec exec = nullptr;
  gpu.check(api.begin_capture(gpu.stream(), cuda_capture_thread_local), "the capture of a graph");
  try {
    work();
  } catch (...) {
    api.end_capture(gpu.stream(), &captured);
    if (captured) api.destroy_graph(captured);
    throw;
  }
  gpu.check(api.end_capture(gpu.stream(), &captured), "the capture of a graph");
  const Owned<CuGraph> graph(captured, api.destroy_graph);
  gpu.check(api.instantiate(&exec, captured, 0), "a graph");
  return {exec, api.destroy_graph_exec};
}

class GpuBytes {
 public:
  GpuBytes() = default;
  GpuBytes(const Gpu& gpu, size_t bytes, const std::string& what);  // at 256-byte boundaries
  GpuBytes(GpuBytes&& other) noexcept : gpu_(other.gpu_), at_(std::exchange(other.at_, 0)), bytes_(other.bytes_) {}
  ~GpuBytes();

  CuDevicePtr at() const { return at_; }
  size_t size() const { return bytes_; }
  std::byte* data() const { return reinterpret_cast<std::byte*>(at_); }  // the device's address

 private:
  const Gpu* gpu_ = nullptr;
  CuDevicePtr at_ = 0;
  size_t bytes_ = 0;
};

// Memory of the host that the GPU copies from and to by itself.
class PinnedBytes {
 public:
  PinnedBytes(const Gpu& gpu, size_t bytes);
  PinnedBytes(PinnedBytes&& other) noexcept : gpu_(other.gpu_), at_(std::exchange(other.at_, nullptr)), bytes_(other.bytes_) {}
  ~PinnedBytes();

  std::byte* data() const { return static_cast<std::byte*>(at_); }
  size_t size() const { return bytes_; }

 private:
  const Gpu* gpu_;
  void* at_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace slipway
