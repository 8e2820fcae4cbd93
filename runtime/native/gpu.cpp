#include "gpu.hpp"

#include <algorithm>
#include <stdexcept>

namespace slipway {

Gpu::Gpu(const CudaApi& api) : api_(api) {
  int count = 0;
  check(api_.init(0), "the driver");
  check(api_.device_count(&count), "the driver");
  if (count == 0) throw std::runtime_error("the NVIDIA driver sees no GPU");
  check(api_.retain_primary_context(&context_, 0), "the context");
  make_current();
  check(api_.create_stream(&stream_, cuda_stream_non_blocking), "a stream");
}

Gpu::~Gpu() {
  api_.set_current(context_);
  api_.destroy_stream(stream_);
  api_.release_primary_context(0);
}

void Gpu::check(CuResult result, const std::string& what) const {
  if (result == cuda_success) return;
  const char* text = nullptr;
  api_.get_error_string(result, &text);
  throw std::runtime_error("GPU: " + what + ": " + (text ? text : "error " + std::to_string(result)));
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
