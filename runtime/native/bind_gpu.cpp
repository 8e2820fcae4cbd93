// Python's view of a GPU, real or emulated, without a plan: for tests and benchmarks of kernels.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "bindings.hpp"
#include "gpu.hpp"
#include "matmuls.hpp"
#include "python_plan.hpp"
#include "slipway/cuda/call.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace slipway {
namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Grid = std::tuple<uint32_t, uint32_t, uint32_t>;

// Addresses, functions and graphs are numbers that hold while the object lives.
class KernelBench {
 public:
  KernelBench(std::optional<uint64_t> emulated, int32_t workers)
      : is_emulated_(emulated.has_value()), gpu_(emulated ? emulated_cuda(*emulated, workers) : cuda_driver()), events_{make_event(gpu_), make_event(gpu_)} {}
  ~KernelBench() { api().synchronize(gpu_.stream()); }

  CuDevicePtr allocate(size_t bytes) { return memory_.emplace_back(gpu_, std::max<size_t>(bytes, 1), "a benchmark").at(); }
  void write(CuDevicePtr to, Bytes from) {
    gpu_.check(api().copy_to_device(to, from.data(), from.size(), gpu_.stream()), "a copy");
    gpu_.synchronize();
  }
  nb::bytes read(CuDevicePtr from, size_t bytes) {
    std::string held(bytes, '\0');
    gpu_.check(api().copy_to_host(held.data(), from, bytes, gpu_.stream()), "a copy");
    gpu_.synchronize();
    return nb::bytes(held.data(), held.size());
  }
  void fill(CuDevicePtr to, uint8_t value, size_t bytes) { gpu_.check(api().fill(to, value, bytes, gpu_.stream()), "zeros"); }

  // Seconds that a copy of the first half of so many bytes at an address to the second half takes, the best of `times`.
  double copy(CuDevicePtr at, size_t bytes, int times) {
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < times; ++i)
      best = std::min(best, seconds_of([&] { gpu_.check(api().copy_on_device(at + bytes / 2, at, bytes / 2, gpu_.stream()), "a copy"); }));
    return best;
  }

  size_t function(const std::string& image, const std::string& name, int shared_bytes) {
    modules_.push_back(load_module(gpu_, image));
    return reinterpret_cast<size_t>(find_function(gpu_, modules_.back().get(), name, shared_bytes));
  }

  // call: the bytes of a cuda::Call.
  void launch(size_t function, const Grid& grid, uint32_t threads, uint32_t shared_bytes, const nb::bytes& call) {
    cuda::Call copy = call_of(call);
    void* arguments[] = {&copy};
    const auto [x, y, z] = grid;
    const CuLaunchConfig config{x, y, z, threads, 1, 1, shared_bytes, gpu_.stream(), nullptr, 0};
    gpu_.check(api().launch(&config, reinterpret_cast<CuFunction>(function), arguments, nullptr), "a launch");
  }
  void matmul(nb::handle spec, const nb::bytes& call, int32_t rows) {
    if (!matmuls_) matmuls_ = std::make_unique<Matmuls>(gpu_, is_emulated_);
    matmuls_->enqueue(matmul_from_python(spec), call_of(call), rows, "a multiplication");
  }
  size_t capture(nb::callable work) {
    graphs_.push_back(slipway::capture(gpu_, [&] { work(); }));
    return graphs_.size() - 1;
  }
  double replay(size_t graph, int times) {
    return seconds_of([&] {
      for (int i = 0; i < times; ++i) gpu_.check(api().launch_graph(graphs_.at(graph).get(), gpu_.stream()), "a graph");
    });
  }
  void synchronize() { gpu_.synchronize(); }

 private:
  const CudaApi& api() const { return gpu_.api(); }

  static cuda::Call call_of(const nb::bytes& call) {
    if (call.size() != sizeof(cuda::Call)) throw std::invalid_argument("call: of another size than slipway::cuda::Call");
    cuda::Call copy;
    std::memcpy(&copy, call.c_str(), sizeof copy);
    return copy;
  }

  // That the GPU takes for what `work` puts into its stream.
  template <class Work> double seconds_of(Work work) {
    gpu_.check(api().record_event(events_[0].get(), gpu_.stream()), "an event");
    work();
    gpu_.check(api().record_event(events_[1].get(), gpu_.stream()), "an event");
    gpu_.synchronize();
    float milliseconds = 0;
    gpu_.check(api().milliseconds(&milliseconds, events_[0].get(), events_[1].get()), "an event");
    return milliseconds / 1e3;
  }

  const bool is_emulated_;
  Gpu gpu_;
  std::unique_ptr<Matmuls> matmuls_;
  std::vector<GpuBytes> memory_;
  std::vector<Owned<CuModule>> modules_;
  std::vector<Owned<CuGraphExec>> graphs_;
  Owned<CuEvent> events_[2];
};

nb::tuple first_gpu() {
  const Gpu gpu(cuda_driver());
  char name[256] = "";
  int major = 0, minor = 0;
  size_t free = 0, total = 0;
  gpu.check(gpu.api().device_name(name, sizeof name, 0), "its name");
  gpu.check(gpu.api().device_attribute(&major, cuda_capability_major, 0), "its compute capability");
  gpu.check(gpu.api().device_attribute(&minor, cuda_capability_minor, 0), "its compute capability");
  gpu.check(gpu.api().memory_info(&free, &total), "its memory");
  return nb::make_tuple(std::string(name), 10 * major + minor, free);
}

}  // namespace

void bind_gpu(nb::module_& module) {
  module.def("first_gpu", &first_gpu, "Name, compute capability and free bytes of the first GPU; RuntimeError where there is none.");
  nb::class_<KernelBench>(module, "KernelBench", "A GPU, or an emulated one, that launches functions of cubins.")
      .def(nb::init<std::optional<uint64_t>, int32_t>(), "emulated"_a.none(), "workers"_a)
      .def("allocate", &KernelBench::allocate, "bytes"_a)
      .def("write", &KernelBench::write, "to"_a, "data"_a)
      .def("read", &KernelBench::read, "at"_a, "bytes"_a)
      .def("fill", &KernelBench::fill, "to"_a, "value"_a, "bytes"_a)
      .def("copy", &KernelBench::copy, "at"_a, "bytes"_a, "times"_a)
      .def("function", &KernelBench::function, "image"_a, "name"_a, "shared_bytes"_a)
      .def("launch", &KernelBench::launch, "function"_a, "grid"_a, "threads"_a, "shared_bytes"_a, "call"_a)
      .def("matmul", &KernelBench::matmul, "matmul"_a, "call"_a, "rows"_a, "A plugins.plugin.Matmul, by cuBLASLt.")
      .def("capture", &KernelBench::capture, "work"_a, "-> a graph of what work() launches.")
      .def("replay", &KernelBench::replay, "graph"_a, "times"_a, "Seconds that so many replays take, one after the other.")
      .def("synchronize", &KernelBench::synchronize);
}

}  // namespace slipway
