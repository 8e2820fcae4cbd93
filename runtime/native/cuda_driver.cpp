#include <stdexcept>
#include <string>

#include "cuda_api.hpp"
#include "shared_library.hpp"

namespace slipway {
namespace {

constexpr int oldest_version = 13000;  // of the compiler that made the cubins

CudaApi load() {
  const SharedLibrary library("libcuda.so.1", "NVIDIA driver");
  const auto find = [&](auto& function, const char* name) { library.find(function, name, ": the NVIDIA driver is too old"); };
  CudaApi api{};
  find(api.init, "cuInit");
  find(api.get_error_string, "cuGetErrorString");
  find(api.device_count, "cuDeviceGetCount");
  find(api.device_name, "cuDeviceGetName");
  find(api.device_attribute, "cuDeviceGetAttribute");
  find(api.retain_primary_context, "cuDevicePrimaryCtxRetain");
  find(api.release_primary_context, "cuDevicePrimaryCtxRelease_v2");
  find(api.set_current, "cuCtxSetCurrent");
  find(api.memory_info, "cuMemGetInfo_v2");
  find(api.allocate, "cuMemAlloc_v2");
  find(api.free, "cuMemFree_v2");
  find(api.allocate_host, "cuMemHostAlloc");
  find(api.free_host, "cuMemFreeHost");
  find(api.copy_to_device, "cuMemcpyHtoDAsync_v2");
  find(api.copy_to_host, "cuMemcpyDtoHAsync_v2");
  find(api.copy_on_device, "cuMemcpyDtoDAsync_v2");
  find(api.fill, "cuMemsetD8Async");
  find(api.create_stream, "cuStreamCreate");
  find(api.destroy_stream, "cuStreamDestroy_v2");
  find(api.synchronize, "cuStreamSynchronize");
  find(api.create_event, "cuEventCreate");
  find(api.destroy_event, "cuEventDestroy_v2");
  find(api.record_event, "cuEventRecord");
  find(api.wait_event, "cuEventSynchronize");
  find(api.milliseconds, "cuEventElapsedTime");
  find(api.load_module, "cuModuleLoad");
  find(api.unload_module, "cuModuleUnload");
  find(api.get_function, "cuModuleGetFunction");
  find(api.set_function_attribute, "cuFuncSetAttribute");
  find(api.launch, "cuLaunchKernelEx");
  find(api.begin_capture, "cuStreamBeginCapture_v2");
  find(api.end_capture, "cuStreamEndCapture");
  find(api.instantiate, "cuGraphInstantiateWithFlags");
  find(api.destroy_graph, "cuGraphDestroy");
  find(api.launch_graph, "cuGraphLaunch");
  find(api.destroy_graph_exec, "cuGraphExecDestroy");
  CuResult (*version)(int*) = nullptr;
  int found = 0;
  find(version, "cuDriverGetVersion");
  if (version(&found) != cuda_success || found < oldest_version)
    throw std::runtime_error("the NVIDIA driver is for CUDA " + std::to_string(found / 1000) + "." + std::to_string(found % 1000 / 10) +
                             "; engines need one for CUDA 13.0 (R580) or later");
  return api;
}

}  // namespace

const CudaApi& cuda_driver() {
  static const CudaApi api = load();
  return api;
}

}  // namespace slipway
