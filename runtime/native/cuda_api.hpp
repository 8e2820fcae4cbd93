// The part of the CUDA driver that the runtime calls: of libcuda, found when it is first asked for, or of the emulation.
//
// Names and signatures are the driver's own (CUDA 13, "CUDA Driver API"), so that one table serves both.
#pragma once
#include <cstddef>
#include <cstdint>

namespace slipway {

using CuResult = int;
using CuDevicePtr = unsigned long long;
using CuContext = void*;
using CuStream = void*;
using CuEvent = void*;
using CuModule = void*;
using CuFunction = void*;
using CuGraph = void*;
using CuGraphExec = void*;

inline constexpr CuResult cuda_success = 0, cuda_out_of_memory = 2, cuda_launch_failed = 719;
inline constexpr int cuda_max_dynamic_shared_bytes = 8;      // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
inline constexpr int cuda_capability_major = 75, cuda_capability_minor = 76;
inline constexpr int cuda_capture_thread_local = 1;
inline constexpr unsigned cuda_stream_non_blocking = 1;

// CUlaunchAttribute: its value is a union of 64 bytes.
struct CuLaunchAttribute {
  int id;
  alignas(8) int value;
  char rest[60];
};
static_assert(sizeof(CuLaunchAttribute) == 72);
inline constexpr int cuda_begins_early = 6;  // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION

// CUlaunchConfig.
struct CuLaunchConfig {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
  CuStream stream;
  CuLaunchAttribute* attributes;
  unsigned num_attributes;
};

struct CudaApi {
  CuResult (*init)(unsigned flags);
  CuResult (*get_error_string)(CuResult, const char** text);
  CuResult (*device_count)(int* count);
  CuResult (*device_name)(char* name, int room, int device);
  CuResult (*device_attribute)(int* value, int attribute, int device);
  CuResult (*retain_primary_context)(CuContext*, int device);
  CuResult (*release_primary_context)(int device);
  CuResult (*set_current)(CuContext);
  CuResult (*memory_info)(size_t* free, size_t* total);
  CuResult (*allocate)(CuDevicePtr*, size_t bytes);
  CuResult (*free)(CuDevicePtr);
  CuResult (*allocate_host)(void**, size_t bytes, unsigned flags);
  CuResult (*free_host)(void*);
  CuResult (*copy_to_device)(CuDevicePtr to, const void* from, size_t bytes, CuStream);
  CuResult (*copy_to_host)(void* to, CuDevicePtr from, size_t bytes, CuStream);
  CuResult (*copy_on_device)(CuDevicePtr to, CuDevicePtr from, size_t bytes, CuStream);
  CuResult (*fill)(CuDevicePtr, unsigned char value, size_t bytes, CuStream);
  CuResult (*create_stream)(CuStream*, unsigned flags);
  CuResult (*destroy_stream)(CuStream);
  CuResult (*synchronize)(CuStream);
  CuResult (*create_event)(CuEvent*, unsigned flags);
  CuResult (*destroy_event)(CuEvent);
  CuResult (*record_event)(CuEvent, CuStream);
  CuResult (*wait_event)(CuEvent);
  CuResult (*milliseconds)(float*, CuEvent from, CuEvent to);
  CuResult (*load_module)(CuModule*, const char* path);
  CuResult (*unload_module)(CuModule);
  CuResult (*get_function)(CuFunction*, CuModule, const char* name);
  CuResult (*set_function_attribute)(CuFunction, int attribute, int value);
  CuResult (*launch)(const CuLaunchConfig*, CuFunction, void** arguments, void** extra);
  CuResult (*begin_capture)(CuStream, int mode);
  CuResult (*end_capture)(CuStream, CuGraph*);
  CuResult (*instantiate)(CuGraphExec*, CuGraph, unsigned long long flags);
  CuResult (*destroy_graph)(CuGraph);
  CuResult (*launch_graph)(CuGraphExec, CuStream);
  CuResult (*destroy_graph_exec)(CuGraphExec);
};

// Throws std::runtime_error, in one sentence, where there is no driver.
const CudaApi& cuda_driver();

// A GPU whose memory is the host's and whose kernels are shared objects, compiled for emulation. Work on a stream is done when it is
// waited for, not before. seed: shuffles threads and blocks; 0: they run in order. workers: host threads that run blocks.
const CudaApi& emulated_cuda(uint64_t seed, int32_t workers);

}  // namespace slipway
