// The driver of a GPU that is not there. What is written to device memory is mapped so that it ends at a guard page and begins as
// NaN; a stream keeps its work until somebody waits for it, so that what is read too early is not there yet, nor is what was
// overwritten too early: both show as wrong results.
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda_api.hpp"
#include "emulated_cuda.hpp"
#include "library.hpp"
#include "slipway/cuda/call.hpp"
#include "slipway/emulation/launch.hpp"

namespace slipway {
namespace {

constexpr CuResult invalid_value = 1, file_not_found = 301, not_found = 500, capture_unsupported = 900;
constexpr size_t page = 4096, alignment = 256;
constexpr unsigned most_threads = 1024;
constexpr int most_shared_bytes = 232448;  // of a block on any GPU; the build knows the target's own
constexpr char name_of_device[] = "emulated GPU";

using Kernel = void (*)(const emulation::Launch&);
using Work = std::function<CuResult()>;

struct Function {
  Kernel kernel;
  std::string name;
  unsigned shared_bytes = 48 << 10;  // without the attribute that allows more
};

struct Module {
  void* library;
  std::unordered_map<std::string, Function> functions;
};

struct Graph {
  std::vector<Work> nodes;
};

struct Stream {
  std::deque<Work> pending;
  uint64_t enqueued = 0;  // since it was made, of which the last are pending
  Graph* capture = nullptr;
  uint64_t seed = 0, launches = 0;
};

struct Event {
  std::chrono::steady_clock::time_point time;
  Stream* stream = nullptr;  // that it was last recorded on, as its so manieth
  uint64_t number = 0;
};

struct Memory {
  std::byte* pages;
  size_t bytes;  // without the guard
};

// Threads that stay, as their fibers do: each launch is run by all of them and by the one that asks.
class Workers {
 public:
  ~Workers() { resize(0); }

  void resize(size_t count) {
    {
      const std::lock_guard held(lock_);
      ending_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    ending_ = false;
    for (size_t i = 0; i < count; ++i) threads_.emplace_back([this, seen = round_] { serve(seen); });
  }
  size_t size() const { return threads_.size(); }

  void run(Kernel kernel, const emulation::Launch& launch) {
    {
      const std::lock_guard held(lock_);
      kernel_ = kernel, launch_ = &launch, busy_ = threads_.size();
      ++round_;
    }
    changed_.notify_all();
    kernel(launch);
    std::unique_lock held(lock_);
    changed_.wait(held, [&] { return busy_ == 0; });
  }

 private:
  void serve(uint64_t seen) {
    std::unique_lock held(lock_);
    for (;;) {
      changed_.wait(held, [&] { return ending_ || round_ != seen; });
      if (ending_) return;
      seen = round_;
      held.unlock();
      kernel_(*launch_);
      held.lock();
      if (--busy_ == 0) changed_.notify_all();
    }
  }

  std::mutex lock_;
  std::condition_variable changed_;
  std::vector<std::thread> threads_;
  Kernel kernel_ = nullptr;
  const emulation::Launch* launch_ = nullptr;
  uint64_t round_ = 0;
  size_t busy_ = 0;
  bool ending_ = false;
};

// One for all engines of the process, as the driver is. The lock is held while work is done: one stream at a time.
struct Emulator {
  std::mutex lock;
  uint64_t seed = 0;  // of streams to come
  Workers workers;
  std::string error;
  std::unordered_map<CuDevicePtr, Memory> memory;
};

Emulator& emulator() {
  static Emulator one;
  return one;
}

CuResult enqueue(CuStream to, Work work) {
  auto* stream = static_cast<Stream*>(to);
  if (stream->capture) return stream->capture->nodes.push_back(std::move(work)), cuda_success;
  stream->pending.push_back(std::move(work));
  ++stream->enqueued;
  return cuda_success;
}

// Does the first `until` works of all there ever were, as far as they are not done. What follows one that fails is never done.
CuResult drain(Stream& stream, uint64_t until) {
  if (stream.capture) return capture_unsupported;  // a GPU would invalidate the capture
  while (!stream.pending.empty() && stream.enqueued - stream.pending.size() < until) {
    const Work work = std::move(stream.pending.front());
    stream.pending.pop_front();
    if (const CuResult result = work()) return stream.pending.clear(), result;
  }
  return cuda_success;
}

CuResult run(const Function& function, emulation::Extent grid, emulation::Extent block, unsigned shared_bytes, uint64_t seed, const cuda::Call& call) {
  Emulator& gpu = emulator();
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false};
  char error[emulation::error_bytes] = "";
  emulation::Launch launch{grid, block, shared_bytes, seed, &call, &next, &failed, error};
  gpu.workers.run(function.kernel, launch);
  if (!failed) return cuda_success;
  gpu.error = function.name + ": " + error;
  return cuda_launch_failed;
}

std::byte* at(CuDevicePtr pointer) { return reinterpret_cast<std::byte*>(pointer); }

CudaApi make() {
  CudaApi api{};
  api.init = [](unsigned) { return cuda_success; };
  api.get_error_string = [](CuResult result, const char** text) {
    static thread_local std::string kept;
    const std::lock_guard held(emulator().lock);
    kept = result == cuda_launch_failed ? emulator().error : result == cuda_out_of_memory ? "out of memory" : "error " + std::to_string(result);
    *text = kept.c_str();
    return cuda_success;
  };
  api.device_count = [](int* count) { return *count = 1, cuda_success; };
  api.device_name = [](char* name, int room, int) { return std::strncpy(name, name_of_device, static_cast<size_t>(room)), cuda_success; };
  api.device_attribute = [](int* value, int, int) { return *value = 0, cuda_success; };
  api.retain_primary_context = [](CuContext* context, int) { return *context = &emulator(), cuda_success; };
  api.release_primary_context = [](int) { return cuda_success; };
  api.set_current = [](CuContext) { return cuda_success; };
  api.memory_info = [](size_t* free, size_t* total) { return *free = *total = size_t{1} << 40, cuda_success; };
  api.allocate = [](CuDevicePtr* pointer, size_t bytes) {
    if (!bytes) return invalid_value;
    const size_t whole = (bytes + page - 1) / page * page;
    void* pages = mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) return cuda_out_of_memory;
    auto* begin = static_cast<std::byte*>(pages);
    mprotect(begin + whole, page, PROT_NONE);
    std::byte* found = begin + (whole - bytes) / alignment * alignment;
    std::memset(found, 0xff, bytes);
    *pointer = reinterpret_cast<CuDevicePtr>(found);
    const std::lock_guard held(emulator().lock);
    emulator().memory[*pointer] = {begin, whole};
    return cuda_success;
  };
  api.free = [](CuDevicePtr pointer) {
    const std::lock_guard held(emulator().lock);
    const auto found = emulator().memory.find(pointer);
    if (found == emulator().memory.end()) return invalid_value;
    munmap(found->second.pages, found->second.bytes + page);
    emulator().memory.erase(found);
    return cuda_success;
  };
  api.allocate_host = [](void** pointer, size_t bytes, unsigned) {
    *pointer = std::aligned_alloc(page, (bytes + page - 1) / page * page);
    return *pointer ? cuda_success : cuda_out_of_memory;
  };
  api.free_host = [](void* pointer) { return std::free(pointer), cuda_success; };
  api.copy_to_device = [](CuDevicePtr to, const void* from, size_t bytes, CuStream stream) {
    return enqueue(stream, [=] { return std::memcpy(at(to), from, bytes), cuda_success; });
  };
  api.copy_to_host = [](void* to, CuDevicePtr from, size_t bytes, CuStream stream) {
    return enqueue(stream, [=] { return std::memcpy(to, at(from), bytes), cuda_success; });
  };
  api.copy_on_device = [](CuDevicePtr to, CuDevicePtr from, size_t bytes, CuStream stream) {
    return enqueue(stream, [=] { return std::memcpy(at(to), at(from), bytes), cuda_success; });
  };
  api.fill = [](CuDevicePtr to, unsigned char value, size_t bytes, CuStream stream) {
    return enqueue(stream, [=] { return std::memset(at(to), value, bytes), cuda_success; });
  };
  api.create_stream = [](CuStream* stream, unsigned) {
    const std::lock_guard held(emulator().lock);
    return *stream = new Stream{.pending = {}, .seed = emulator().seed}, cuda_success;
  };
  api.destroy_stream = [](CuStream stream) { return delete static_cast<Stream*>(stream), cuda_success; };
  api.synchronize = [](CuStream stream) {
    const std::lock_guard held(emulator().lock);
    return drain(*static_cast<Stream*>(stream), static_cast<Stream*>(stream)->enqueued);
  };
  api.create_event = [](CuEvent* event, unsigned) { return *event = new Event, cuda_success; };
  api.destroy_event = [](CuEvent event) { return delete static_cast<Event*>(event), cuda_success; };
  api.record_event = [](CuEvent event, CuStream stream) {
    auto& recorded = *static_cast<Event*>(event);
    const CuResult result = enqueue(stream, [&recorded] { return recorded.time = std::chrono::steady_clock::now(), cuda_success; });
    recorded.stream = static_cast<Stream*>(stream);
    recorded.number = recorded.stream->enqueued;
    return result;
  };
  api.wait_event = [](CuEvent event) {
    const std::lock_guard held(emulator().lock);
    const auto& recorded = *static_cast<Event*>(event);
    return recorded.stream ? drain(*recorded.stream, recorded.number) : cuda_success;
  };
  api.milliseconds = [](float* result, CuEvent from, CuEvent to) {
    const auto time = [](CuEvent event) { return static_cast<Event*>(event)->time; };
    *result = std::chrono::duration<float, std::milli>(time(to) - time(from)).count();
    return cuda_success;
  };
  api.load_module = [](CuModule* module, const char* path) {
    void* library = open_library(path);
    if (!library) return file_not_found;
    *module = new Module{library, {}};
    return cuda_success;
  };
  api.unload_module = [](CuModule module) {
    dlclose(static_cast<Module*>(module)->library);
    return delete static_cast<Module*>(module), cuda_success;
  };
  api.get_function = [](CuFunction* function, CuModule module, const char* name) {
    auto* of = static_cast<Module*>(module);
    void* address = dlsym(of->library, name);
    if (!address) return not_found;
    Function& found = of->functions[name];
    found.kernel = reinterpret_cast<Kernel>(address);
    found.name = name;
    *function = &found;
    return cuda_success;
  };
  api.set_function_attribute = [](CuFunction function, int attribute, int value) {
    if (attribute != cuda_max_dynamic_shared_bytes || value < 0 || value > most_shared_bytes) return invalid_value;
    return static_cast<Function*>(function)->shared_bytes = static_cast<unsigned>(value), cuda_success;
  };
  api.launch = [](const CuLaunchConfig* config, CuFunction function, void** arguments, void**) {
    const auto* of = static_cast<const Function*>(function);
    const emulation::Extent grid{config->grid_x, config->grid_y, config->grid_z}, block{config->block_x, config->block_y, config->block_z};
    const unsigned shared = config->shared_bytes;
    if (!grid.count() || grid.y > 65535 || grid.z > 65535 || !block.count() || block.count() > most_threads || shared > of->shared_bytes) return invalid_value;
    const auto call = *static_cast<const cuda::Call*>(arguments[0]);
    auto* own = static_cast<Stream*>(config->stream);
    return enqueue(own, [=] { return run(*of, grid, block, shared, own->seed ? own->seed + ++own->launches : 0, call); });
  };
  api.begin_capture = [](CuStream stream, int) {
    auto* of = static_cast<Stream*>(stream);
    if (of->capture) return capture_unsupported;
    return of->capture = new Graph, cuda_success;
  };
  api.end_capture = [](CuStream stream, CuGraph* graph) {
    *graph = std::exchange(static_cast<Stream*>(stream)->capture, nullptr);
    return *graph ? cuda_success : invalid_value;
  };
  api.instantiate = [](CuGraphExec* exec, CuGraph graph, unsigned long long) { return *exec = new Graph(*static_cast<Graph*>(graph)), cuda_success; };
  api.destroy_graph = [](CuGraph graph) { return delete static_cast<Graph*>(graph), cuda_success; };
  api.launch_graph = [](CuGraphExec exec, CuStream stream) {
    for (const Work& node : static_cast<Graph*>(exec)->nodes) enqueue(stream, node);
    return cuda_success;
  };
  api.destroy_graph_exec = [](CuGraphExec exec) { return delete static_cast<Graph*>(exec), cuda_success; };
  return api;
}

}  // namespace

CuResult emulated_enqueue(CuStream stream, std::function<CuResult()> work) { return enqueue(stream, std::move(work)); }

const CudaApi& emulated_cuda(uint64_t seed, int32_t workers) {
  static const CudaApi api = make();
  Emulator& gpu = emulator();
  const std::lock_guard held(gpu.lock);
  gpu.seed = seed;
  if (const auto helpers = static_cast<size_t>(std::max(1, workers) - 1); gpu.workers.size() != helpers) gpu.workers.resize(helpers);
  return api;
}

}  // namespace slipway
