#include "gpu.hpp"

#include <algorithm>
#include <stdexcept>

namespace slipway {

Gpu::Gpu(const CudaApi& api) : api_(api), owned_(api) {
  int count = 0;
  check(api_.init(0), "the driver");
  check(api_.device_count(&count), "the driver");
  if (count == 0) throw std::runtime_error("the NVIDIA driver sees no GPU");
  check(api_.retain_primary_context(&owned_.handle, 0), "the context");
  context_ = owned_.handle;
  make_current();
  check(api_.create_stream(&stream_, cuda_stream_non_blocking), "a stream");
}

Gpu::~Gpu() {
  api_.set_current(context_);
  api_.destroy_stream(stream_);
}

void Gpu::check(CuResult result, const std::string& what) const {
  if (result == cuda_success) return;
  const char* text = nullptr;
  api_.get_error_string(result, &text);
  throw std::runtime_error("GPU: " + what + ": " + (text ? text : "error " + std::to_string(result)));
}

Owned<CuEvent> make_event(const Gpu& gpu) {
  CuEvent event = nullptr;
  gpu.check(gpu.api().create_event(&event, 0), "an event");
  return {event, gpu.api().destroy_event};
}

Owned<CuModule> load_module(const Gpu& gpu, const std::string& path) {
  CuModule module = nullptr;
  gpu.check(gpu.api().load_module(&module, path.c_str()), path);
  return {module, gpu.api().unload_module};
}

CuFunction find_function(const Gpu& gpu, CuModule module, const std::string& name, int shared_bytes) {
  CuFunction found = nullptr;
  gpu.check(gpu.api().get_function(&found, module, name.c_str()), name);
  gpu.check(gpu.api().set_function_attribute(found, cuda_max_dynamic_shared_bytes, shared_bytes), name);
  return found;
}

GpuBytes::GpuBytes(const Gpu& gpu, size_t bytes, const std::string& what) : gpu_(&gpu), bytes_(bytes) {
  if (bytes) gpu.check(gpu.api().allocate(&at_, bytes), std::to_string(bytes >> 20) + " MiB for " + what);
}

GpuBytes::~GpuBytes() {
  if (at_) gpu_->api().free(at_);
}

PinnedBytes::PinnedBytes(const Gpu& gpu, size_t bytes) : gpu_(&gpu), bytes_(bytes) {
  gpu.check(gpu.api().allocate_host(&at_, std::max<size_t>(bytes, 1), 0), "memory of the host");
}

PinnedBytes::~PinnedBytes() {
  if (at_) gpu_->api().free_host(at_);
}

}  // namespace slipway
