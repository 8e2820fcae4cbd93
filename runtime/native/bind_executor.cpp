// Python's view of mappings and of a bare executor, without a scheduler: for verification and for tests.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>

#include "bindings.hpp"
#include "executor.hpp"
#include "python_plan.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace slipway {

namespace {

nb::object copied(const int32_t* values, int32_t count) {
  const nb::ndarray<nb::numpy, const int32_t, nb::ndim<1>> view(values, {static_cast<size_t>(count)}, nb::handle());
  return nb::cast(view, nb::rv_policy::copy);
}

}  // namespace

SegmentRunner python_segments(nb::object run) {
  // The runner is copied and destroyed with the GIL held or not: the reference must be let go with it.
  auto callable = std::shared_ptr<nb::object>(new nb::object(std::move(run)), [](nb::object* object) {
    nb::gil_scoped_acquire gil;
    delete object;
  });
  return [callable](int32_t step, const Batch& batch) -> std::optional<std::string> {
    nb::gil_scoped_acquire gil;
    try {
      (*callable)(step, copied(batch.token_ids, batch.num_tokens), copied(batch.positions, batch.num_tokens),
                  copied(batch.logit_rows, batch.num_logit_rows));
      return std::nullopt;
    } catch (nb::python_error& error) {
      return std::string("a segment failed: ") + error.what();
    }
  };
}

std::vector<std::shared_ptr<const Mapping>> mappings(nb::handle list) {
  std::vector<std::shared_ptr<const Mapping>> result;
  for (nb::handle item : list) result.push_back(nb::cast<std::shared_ptr<Mapping>>(item));
  return result;
}

ArenaView arena_of(Executor& executor) {
  const size_t shape[] = {executor.arena_bytes()};
  return {executor.arena(), 1, shape, nb::handle()};
}

namespace {

using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

struct BareExecutor {
  Team team;
  Plan plan;
  std::unique_ptr<Executor> executor;
  BareExecutor(nb::handle manifest, const std::string& directory, nb::handle weights, int32_t num_blocks, int32_t threads,
               std::optional<uint64_t> emulated)
      : team(threads), plan(plan_from_python(manifest, directory, num_blocks, emulated)), executor(make_executor(plan, mappings(weights), team)) {}
};

Batch checked_batch(const Plan& plan, Ints& tokens, Ints& positions, Ints& cu_seqlens, Ints& kv_lens, Table& blocks, Ints& rows) {
  const size_t seqs = kv_lens.size();
  const auto in_range = [](const Ints& values, int64_t end) {
    for (size_t i = 0; i < values.size(); ++i)
      if (values.data()[i] < 0 || values.data()[i] >= end) return false;
    return true;
  };
  const Limits& limits = plan.limits;
  bool good = tokens.size() >= 1 && tokens.size() <= static_cast<size_t>(limits.max_batch_tokens) && positions.size() == tokens.size() &&
              seqs >= 1 && seqs <= static_cast<size_t>(limits.max_sequences) && cu_seqlens.size() == seqs + 1 &&
              blocks.shape(0) == seqs && blocks.shape(1) <= static_cast<size_t>((limits.max_sequence_length + plan.kv.block_size - 1) / plan.kv.block_size) && rows.size() <= static_cast<size_t>(limits.max_logit_rows) &&
              in_range(tokens, plan.vocab_size) && in_range(positions, limits.max_sequence_length) &&
              in_range(rows, static_cast<int64_t>(tokens.size())) && std::is_sorted(rows.data(), rows.data() + rows.size()) && cu_seqlens.data()[0] == 0 &&
              cu_seqlens.data()[seqs] == static_cast<int64_t>(tokens.size());
  for (size_t s = 0; good && s < seqs; ++s) {
    const int64_t used = (kv_lens.data()[s] + plan.kv.block_size - 1) / plan.kv.block_size;
    good = cu_seqlens.data()[s] < cu_seqlens.data()[s + 1] && cu_seqlens.data()[s + 1] <= cu_seqlens.data()[seqs] && kv_lens.data()[s] >= cu_seqlens.data()[s + 1] - cu_seqlens.data()[s] &&
           used <= static_cast<int64_t>(blocks.shape(1));
    // The new tokens are the last of the sequence: attention goes by their positions.
    for (int32_t t = cu_seqlens.data()[s]; good && t < cu_seqlens.data()[s + 1]; ++t)
      good = positions.data()[t] == kv_lens.data()[s] - (cu_seqlens.data()[s + 1] - t);
    for (int64_t b = 0; good && b < used; ++b) {
      const int32_t block = blocks(s, static_cast<size_t>(b));
      good = block >= 0 && block < plan.kv.num_blocks;
    }
  }
  if (!good) throw std::invalid_argument("the batch is not within the engine's limits");
  return {static_cast<int32_t>(tokens.size()), static_cast<int32_t>(seqs), static_cast<int32_t>(rows.size()),
          static_cast<int32_t>(blocks.shape(1)), tokens.data(), positions.data(), cu_seqlens.data(), kv_lens.data(),
          blocks.data(), rows.data(), nullptr, nullptr, {}};
}

nb::ndarray<nb::numpy, float> run(BareExecutor& self, Ints tokens, Ints positions, Ints cu_seqlens, Ints kv_lens, Table blocks, Ints rows) {
  const Batch batch = checked_batch(self.plan, tokens, positions, cu_seqlens, kv_lens, blocks, rows);
  const size_t columns = static_cast<size_t>(self.plan.vocab_size);
  auto* logits = new float[std::max<size_t>(1, rows.size() * columns)];
  nb::capsule owner(logits, [](void* data) noexcept { delete[] static_cast<float*>(data); });
  std::optional<std::string> error;
  {
    nb::gil_scoped_release release;
    error = self.executor->run(batch);
    for (int32_t row = 0; row < batch.num_logit_rows; ++row)
      std::copy_n(self.executor->logits(row), columns, logits + static_cast<size_t>(row) * columns);
  }
  if (error) throw std::runtime_error(*error);
  return {logits, {rows.size(), columns}, owner};
}

int view_buffer(PyObject* object, Py_buffer* view, int flags) {
  const Mapping* mapping = nb::inst_ptr<Mapping>(object);
  static std::byte nothing{};
  return PyBuffer_FillInfo(view, object, mapping->data() ? mapping->data() : &nothing, static_cast<Py_ssize_t>(mapping->size()), 1, flags);
}

PyType_Slot mapping_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(view_buffer)}, {0, nullptr}};

}  // namespace

void bind_executor(nb::module_& module) {
  nb::class_<Mapping>(module, "Mapping", nb::type_slots(mapping_slots), "A file in memory, read-only; a buffer.")
      .def("__init__", [](Mapping* self, const std::string& path, size_t bytes) { new (self) Mapping(Mapping::file(path, bytes)); }, "path"_a, "bytes"_a)
      .def("populate", &Mapping::populate, nb::call_guard<nb::gil_scoped_release>());

  nb::class_<BareExecutor>(module, "Executor", "Replays a plan without a scheduler; the caller places the KV blocks.")
      .def(nb::init<nb::handle, const std::string&, nb::handle, int32_t, int32_t, std::optional<uint64_t>>(), "manifest"_a, "directory"_a, "weights"_a, "num_blocks"_a,
           "threads"_a, "emulated"_a.none() = nb::none())
      .def("run", &run, "token_ids"_a, "positions"_a, "cu_seqlens"_a, "kv_lens"_a, "block_table"_a, "logit_rows"_a,
           "Logits [wanted rows, vocab_size] of one ragged batch; int32 arrays as slipway::Batch has them.")
      .def("time_steps", [](BareExecutor& self, bool on) { self.executor->time_steps(on); }, "on"_a)
      .def_prop_ro("step_seconds", [](BareExecutor& self) { return self.executor->step_seconds(); }, "Of the last run, if timed.")
      .def("run_segments_with", [](BareExecutor& self, nb::object run) { self.executor->run_segments_with(python_segments(std::move(run))); })
      .def("arena", [](BareExecutor& self) { return arena_of(*self.executor); }, nb::rv_policy::reference);
}

}  // namespace slipway
