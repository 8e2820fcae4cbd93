// Python's view of the engine. Whatever waits, waits without the GIL.
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bindings.hpp"
#include "engine.hpp"
#include "python_events.hpp"
#include "python_plan.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace slipway {
namespace {

class PythonEngine {
 public:
  PythonEngine(nb::handle manifest, const std::string& directory, nb::handle weights, nb::handle vocabulary, int32_t num_blocks, int32_t threads,
               int32_t max_queued, std::optional<uint64_t> emulated)
      : plan_(plan_from_python(manifest, directory, num_blocks, emulated)) {
    std::vector<int32_t> eos;
    if (const nb::object tokenizer = manifest.attr("tokenizer"); !tokenizer.is_none())
      for (nb::handle token : tokenizer.attr("eos_token_ids")) eos.push_back(nb::cast<int32_t>(token));
    engine_ = std::make_unique<Engine>(plan_, mappings(weights), vocabulary_from_python(vocabulary), std::move(eos), threads, max_queued);
  }

  ~PythonEngine() {
    nb::gil_scoped_release release;  // the engine thread may be waiting for it, in a segment
    engine_.reset();
  }

  Engine* operator->() { return engine_.get(); }

  void submit(uint64_t id, std::vector<int32_t> prompt, nb::handle params, int32_t priority, std::optional<double> deadline, uint64_t salt,
              std::shared_ptr<Grammar> grammar) {
    Request request;
    request.id = id;
    request.prompt = std::move(prompt);
    request.params = params_from_python(params);
    request.priority = priority;
    request.deadline_s = deadline;
    request.salt = salt;
    request.grammar = std::move(grammar);
    if (auto problem = check(request.params, plan_.vocab_size)) throw std::invalid_argument(*problem);
    engine_->submit(std::move(request));
  }

  nb::object poll(double patience) {
    std::optional<std::vector<Event>> events;
    {
      nb::gil_scoped_release release;
      events = engine_->poll(patience);
    }
    return events ? nb::object(events_to_python(*events)) : nb::none();
  }

  nb::list take_step_times() {
    nb::list result;
    for (const StepTimes& times : engine_->take_step_times()) result.append(nb::make_tuple(times.num_tokens, times.num_seqs, times.seconds));
    return result;
  }

 private:
  Plan plan_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace

void bind_engine(nb::module_& module) {
  using Self = PythonEngine;
  nb::class_<Self>(module, "Engine", "The engine thread and its queues; see runtime/engine.py.")
      .def(nb::init<nb::handle, const std::string&, nb::handle, nb::handle, int32_t, int32_t, int32_t, std::optional<uint64_t>>(), "manifest"_a, "directory"_a, "weights"_a,
           "vocabulary"_a, "num_blocks"_a, "threads"_a, "max_queued"_a, "emulated"_a.none())
      .def("submit", &Self::submit, "id"_a, "prompt"_a, "params"_a, "priority"_a, "deadline"_a.none(), "salt"_a, "grammar"_a.none())
      .def("poll", &Self::poll, "patience"_a, "Events since the last call, waiting for some; None when all is over.")
      .def("take_step_times", &Self::take_step_times)
      .def("cancel", [](Self& self, uint64_t id) { self->cancel(id); }, "id"_a)
      .def("stop", [](Self& self, bool drain) { self->stop(drain); }, "drain"_a)
      .def("failure", [](Self& self) { return self->failure(); }, "Why it serves no more though nobody stopped it, or None.")
      .def("metrics", [](Self& self) { return self->metrics(); })
      .def("record_step_times", [](Self& self, bool on) { self->record_step_times(on); }, "on"_a)
      .def("run_segments_with", [](Self& self, nb::object run) { self->executor().run_segments_with(python_segments(std::move(run))); })
      .def("arena", [](Self& self) { return arena_of(self->executor()); }, nb::rv_policy::reference);
}

}  // namespace slipway
