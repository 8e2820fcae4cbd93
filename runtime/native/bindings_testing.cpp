// slipway.runtime._native.core: the scheduling core, bare, for tests/runtime alone.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <numeric>

#include "drafts.hpp"
#include "draws.hpp"
#include "kv_cache.hpp"
#include "philox.hpp"
#include "python_events.hpp"
#include "sampler.hpp"
#include "scheduler.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace slipway {
namespace {

using Tokens = std::vector<int32_t>;
using Logits = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Mask = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A KvCache whose leases are numbered.
struct Leases {
  KvCache kv;
  std::map<int32_t, KvLease> leases;
  int32_t next = 0;

  std::optional<int32_t> acquire(const Tokens& tokens, uint64_t salt) {
    if (kv.cost(tokens, salt) > kv.num_available()) return std::nullopt;
    kv.acquire(leases[next], tokens, salt);
    return next++;
  }
  void release(int32_t lease) {
    kv.release(leases.at(lease));
    leases.erase(lease);
  }
  int32_t spare_after(const Tokens& tokens, uint64_t salt, const std::vector<int32_t>& released) const {
    KvCache::Prospect prospect(kv, tokens, salt);
    for (const int32_t lease : released) prospect.release(leases.at(lease));
    return prospect.spare();
  }
  void check_integrity() const {
    std::vector<const KvLease*> held;
    for (const auto& [number, lease] : leases) held.push_back(&lease);
    kv.check_integrity(held);
  }
};

// A grammar as a function: follow(output) -> the token ids that may follow, none where it is complete.
struct PythonGrammar : Grammar {
  nb::object follow;
  explicit PythonGrammar(nb::object callable) : follow(std::move(callable)) {}

  struct Constraint : TokenConstraint {
    const PythonGrammar& grammar;
    Tokens output;
    explicit Constraint(const PythonGrammar& from) : grammar(from) {}

    Tokens next() const { return nb::cast<Tokens>(grammar.follow(output)); }
    bool take(int32_t token) override {
      output.push_back(token);
      return next().empty();
    }
    std::optional<std::string> allow(std::span<const int32_t> drafts, std::span<const int32_t>, std::span<uint32_t> masks) override {
      const Tokens before = output;
      const size_t words = masks.size() / (1 + drafts.size());
      std::ranges::fill(masks, 0u);
      for (size_t i = 0; i <= drafts.size(); ++i) {
        for (const int32_t token : next()) masks[i * words + static_cast<size_t>(token) / 32] |= 1u << (token % 32);
        if (i < drafts.size()) output.push_back(drafts[i]);
      }
      output = before;
      return std::nullopt;
    }
  };
  std::unique_ptr<TokenConstraint> start() const override { return std::make_unique<Constraint>(*this); }
};

struct TestScheduler {
  PromptLookup drafts;
  std::optional<Vocabulary> vocabulary;
  Scheduler scheduler;

  TestScheduler(SchedulerConfig config, std::optional<Vocabulary> pieces)
      : vocabulary(std::move(pieces)), scheduler(std::move(config), vocabulary ? &*vocabulary : nullptr, &drafts) {}

  std::optional<std::string> add(uint64_t id, Tokens prompt, nb::handle params, double now, int32_t priority,
                                 std::optional<double> deadline, uint64_t salt, nb::object grammar) {
    Request request{.id = id, .prompt = std::move(prompt), .params = params_from_python(params), .priority = priority,
                    .deadline_s = deadline, .salt = salt, .grammar = nullptr};
    if (nb::isinstance<Grammar>(grammar))
      request.grammar = nb::cast<std::shared_ptr<Grammar>>(grammar);
    else if (!grammar.is_none())
      request.grammar = std::make_shared<PythonGrammar>(std::move(grammar));
    const auto refusal = scheduler.add(std::move(request), now);
    return refusal ? std::optional(refusal->message) : std::nullopt;
  }
};

// The Draw of one row as bytes, and its edits.
std::pair<nb::bytes, nb::bytes> draw_of(int32_t vocab_size, nb::handle params, const Tokens& history, int32_t prompt_length, const Tokens& ending_tokens,
                                        uint64_t seed, uint32_t sequence_index) {
  const SamplingParams converted = params_from_python(params);
  PenaltyTable table({history.data(), static_cast<size_t>(prompt_length)});
  for (auto i = static_cast<size_t>(prompt_length); i < history.size(); ++i) table.add_output(history[i]);
  Draws draws(vocab_size);
  draws.add({.params = &converted,
             .history = history,
             .prompt_length = prompt_length,
             .penalties = uses_penalties(converted) ? &table : nullptr,
             .ending_tokens = ending_tokens,
             .allowed_tokens = nullptr,
             .seed = seed,
             .sequence_index = sequence_index});
  const auto bytes = [](auto values) { return nb::bytes(reinterpret_cast<const char*>(values.data()), values.size_bytes()); };
  return {bytes(draws.draws()), bytes(draws.edits())};
}

Sampled sample_row(Sampler& sampler, Logits logits, nb::handle params, const Tokens& history, int32_t prompt_length, int32_t num_pending,
                   const Tokens& ending_tokens, std::optional<Mask> allowed, uint64_t seed, uint32_t sequence_index) {
  const SamplingParams converted = params_from_python(params);
  PenaltyTable table({history.data(), static_cast<size_t>(prompt_length)});
  for (auto i = static_cast<size_t>(prompt_length); i + static_cast<size_t>(num_pending) < history.size(); ++i) table.add_output(history[i]);
  return sampler.sample({logits.data(), logits.size()}, {.params = &converted,
                                                         .history = history,
                                                         .prompt_length = prompt_length,
                                                         .penalties = uses_penalties(converted) ? &table : nullptr,
                                                         .ending_tokens = ending_tokens,
                                                         .allowed_tokens = allowed ? allowed->data() : nullptr,
                                                         .seed = seed,
                                                         .sequence_index = sequence_index});
}

nb::object step_or_none(StepBatch* step) {
  if (!step) return nb::none();
  for (size_t i = 0; i < step->constrained.size(); ++i)
    if (auto error = step->constrain(i)) throw std::runtime_error(*error);
  nb::dict arrays;
  arrays["token_ids"] = step->token_ids;
  arrays["positions"] = step->positions;
  arrays["cu_seqlens"] = step->cu_seqlens;
  arrays["kv_lens"] = step->kv_lens;
  arrays["block_table"] = step->block_table;
  arrays["max_blocks"] = step->batch.max_blocks;
  arrays["logit_rows"] = step->logit_rows;
  arrays["request_ids"] = step->request_ids;
  arrays["sequence_indices"] = step->sequence_indices;
  arrays["rows"] = step->rows;
  return arrays;
}

void bind_sampling(nb::module_& core) {
  core.def("philox4x32", &philox4x32, "counter"_a, "key"_a);
  core.def("check_params", [](nb::handle params, int32_t vocab_size) { return check(params_from_python(params), vocab_size); });
  core.def("draw_of", &draw_of, "vocab_size"_a, "params"_a, "history"_a, "prompt_length"_a, "ending_tokens"_a = Tokens{}, "seed"_a = 0, "sequence_index"_a = 0,
           "What a GPU is told of one row: a slipway::Draw, and the slipway::LogitEdits, as bytes.");
  nb::class_<Sampled>(core, "Sampled")
      .def("__init__", [](Sampled* self, int32_t token, std::optional<std::string> error, bool again) {
        new (self) Sampled{token, again, std::move(error), std::nullopt, {}};
      }, "token"_a, "error"_a.none() = nb::none(), "again"_a = false)
      .def_ro("token", &Sampled::token)
      .def_ro("error", &Sampled::error)
      .def_ro("again", &Sampled::again)
      .def_ro("logprob", &Sampled::logprob)
      .def_prop_ro("top", [](const Sampled& self) {
        nb::list top;
        for (const TokenLogprob& entry : self.top) top.append(nb::make_tuple(entry.token, entry.logprob));
        return top;
      });
  nb::class_<SampleContext>(core, "SampleContext")
      .def_prop_ro("history", [](const SampleContext& self) { return Tokens(self.history.begin(), self.history.end()); })
      .def_ro("prompt_length", &SampleContext::prompt_length)
      .def_ro("on_host", &SampleContext::on_host);
  nb::class_<Sampler>(core, "Sampler")
      .def(nb::init<int32_t>(), "vocab_size"_a)
      .def("sample", [](Sampler& self, Logits logits, const SampleContext& context) {
        return self.sample({logits.data(), logits.size()}, context);
      }, "logits"_a, "context"_a)
      .def("sample_row", &sample_row, "logits"_a, "params"_a, "history"_a, "prompt_length"_a, "num_pending"_a = 0,
           "ending_tokens"_a = Tokens{}, "allowed"_a.none() = nb::none(), "seed"_a = 0, "sequence_index"_a = 0);
}

void bind_text(nb::module_& core) {
  nb::class_<Vocabulary>(core, "Vocabulary").def("__init__", [](Vocabulary* self, nb::handle from) {
    new (self) Vocabulary(vocabulary_from_python(from));
  });
  nb::class_<TextStream>(core, "TextStream")
      .def("__init__", [](TextStream* self, const Vocabulary& vocabulary, std::vector<std::string> stop, bool include_stop, bool skip_special_tokens) {
        new (self) TextStream(vocabulary, {std::move(stop), include_stop, skip_special_tokens});
      }, nb::keep_alive<1, 2>(), "vocabulary"_a, "stop"_a, "include_stop"_a = false, "skip_special_tokens"_a = true)
      .def("push", [](TextStream& self, int32_t token, bool may_stop) {
        std::string text;
        const bool stopped = self.push(token, text, may_stop);
        return nb::make_tuple(text, stopped);
      }, "token"_a, "may_stop"_a = true)
      .def("finish", [](TextStream& self) {
        std::string text;
        self.finish(text);
        return text;
      });
}

void bind_kv_cache(nb::module_& core) {
  nb::class_<Leases>(core, "KvCache", "Leases are numbers.")
      .def("__init__", [](Leases* self, int32_t num_blocks, int32_t block_size) { new (self) Leases{KvCache(num_blocks, block_size), {}}; })
      .def("acquire", &Leases::acquire, "tokens"_a, "salt"_a = 0, "The lease, or None if there are too few blocks.")
      .def("grow", [](Leases& self, int32_t lease, int64_t num_tokens) { return self.kv.grow(self.leases.at(lease), num_tokens); })
      .def("publish", [](Leases& self, int32_t lease, const Tokens& tokens, int64_t computed) { self.kv.publish(self.leases.at(lease), tokens, computed); })
      .def("release", &Leases::release)
      .def("blocks", [](Leases& self, int32_t lease) { return self.leases.at(lease).blocks; })
      .def("num_published", [](Leases& self, int32_t lease) { return self.leases.at(lease).num_published; })
      .def("spare_after", &Leases::spare_after, "tokens"_a, "salt"_a, "released"_a, "Blocks that acquire() would leave available if leases were released.")
      .def_prop_ro("counts", [](Leases& self) { return nb::make_tuple(self.kv.num_free(), self.kv.num_cached(), self.kv.num_owned()); },
                   "Blocks that are free, cached, owned.")
      .def("check_integrity", &Leases::check_integrity);
}

void bind_scheduler(nb::module_& core) {
  core.def("prompt_lookup", [](const Tokens& history, int32_t max_tokens) {
    Tokens drafts;
    PromptLookup().propose(history, max_tokens, drafts);
    return drafts;
  });
  nb::class_<Metrics>(core, "Metrics")
      .def_ro("arrival_s", &Metrics::arrival_s).def_ro("first_scheduled_s", &Metrics::first_scheduled_s)
      .def_ro("first_token_s", &Metrics::first_token_s).def_ro("finished_s", &Metrics::finished_s)
      .def_ro("prompt_tokens", &Metrics::prompt_tokens).def_ro("cached_tokens", &Metrics::cached_tokens)
      .def_ro("output_tokens", &Metrics::output_tokens).def_ro("preemptions", &Metrics::preemptions)
      .def_ro("drafted_tokens", &Metrics::drafted_tokens).def_ro("accepted_tokens", &Metrics::accepted_tokens);
  nb::class_<Event>(core, "Event")
      .def_ro("request_id", &Event::request_id).def_ro("sequence_index", &Event::sequence_index)
      .def_ro("text", &Event::text).def_ro("error", &Event::error).def_ro("metrics", &Event::metrics)
      .def_prop_ro("tokens", [](const Event& self) {
        Tokens tokens;
        for (const OutputToken& token : self.tokens) tokens.push_back(token.token);
        return tokens;
      })
      .def_prop_ro("finish", [](const Event& self) { return self.finish ? std::optional<std::string>(name(*self.finish)) : std::nullopt; });
  nb::class_<SchedulerStats>(core, "SchedulerStats")
      .def_ro("running_sequences", &SchedulerStats::running_sequences).def_ro("waiting_sequences", &SchedulerStats::waiting_sequences)
      .def_ro("free_blocks", &SchedulerStats::free_blocks).def_ro("cached_blocks", &SchedulerStats::cached_blocks)
      .def_ro("owned_blocks", &SchedulerStats::owned_blocks).def_ro("preemptions", &SchedulerStats::preemptions)
      .def_ro("accepted_tokens", &SchedulerStats::accepted_tokens).def_ro("cached_tokens", &SchedulerStats::cached_tokens);
  nb::class_<SchedulerConfig>(core, "SchedulerConfig")
      .def(nb::init<>())
      .def_rw("num_blocks", &SchedulerConfig::num_blocks).def_rw("block_size", &SchedulerConfig::block_size)
      .def_rw("vocab_size", &SchedulerConfig::vocab_size).def_rw("max_sequence_length", &SchedulerConfig::max_sequence_length)
      .def_rw("max_batch_tokens", &SchedulerConfig::max_batch_tokens).def_rw("max_sequences", &SchedulerConfig::max_sequences)
      .def_rw("max_logit_rows", &SchedulerConfig::max_logit_rows).def_rw("max_queued_requests", &SchedulerConfig::max_queued_requests)
      .def_rw("speculation_max_sequences", &SchedulerConfig::speculation_max_sequences).def_rw("ageing_s", &SchedulerConfig::ageing_s)
      .def_rw("eos_token_ids", &SchedulerConfig::eos_token_ids).def_rw("seed", &SchedulerConfig::seed);
  nb::class_<TestScheduler>(core, "Scheduler")
      .def("__init__", [](TestScheduler* self, const SchedulerConfig& config, nb::object vocabulary) {
        new (self) TestScheduler(config, vocabulary.is_none() ? std::nullopt : std::optional(vocabulary_from_python(vocabulary)));
      }, "config"_a, "vocabulary"_a.none() = nb::none())
      .def("add", &TestScheduler::add, "id"_a, "prompt"_a, "params"_a, "now"_a, "priority"_a = 0, "deadline"_a.none() = nb::none(),
           "salt"_a = 0, "grammar"_a.none() = nb::none(), "Why the request was refused, or None.")
      .def("cancel", [](TestScheduler& self, uint64_t id, double now) { self.scheduler.cancel(id, now); })
      .def("next", [](TestScheduler& self, double now) { return step_or_none(self.scheduler.next(now)); })
      .def("in_flight", [](TestScheduler& self) { return step_or_none(self.scheduler.in_flight()); })
      .def("next_ahead", [](TestScheduler& self, double now) { return step_or_none(self.scheduler.next_ahead(now)); })
      .def("commit", [](TestScheduler& self, std::vector<Sampled> sampled, double now) { return self.scheduler.commit(std::move(sampled), now); })
      .def("fail", [](TestScheduler& self, const std::string& message, double now) { return self.scheduler.fail(message, now); })
      .def("take_events", [](TestScheduler& self) { return self.scheduler.take_events(); })
      .def("has_work", [](TestScheduler& self) { return self.scheduler.has_work(); })
      .def("stats", [](TestScheduler& self) { return self.scheduler.stats(); })
      .def("check_integrity", [](TestScheduler& self) { self.scheduler.check_integrity(); });
}

}  // namespace

void bind_core(nb::module_& module) {
  nb::module_ core = module.def_submodule("core", "The scheduling core, bare: for tests.");
  bind_sampling(core);
  bind_text(core);
  bind_kv_cache(core);
  bind_scheduler(core);
}

}  // namespace slipway
