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
  void make_current() const { check(api_.set_current(context_), "the context"); }  // for a thread that is to call the driver
  void synchronize() const { check(api_.synchronize(stream_), "a step"); }
  void check(CuResult result, const std::string& what) const;

 private:
  const CudaApi& api_;
  CuContext context_ = nullptr;
  CuStream stream_ = nullptr;
};

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
