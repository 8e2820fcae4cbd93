// The engine over an executor that draws tokens, as a GPU does, and now and then cannot; clients come, and leave, at any time.
//
// What follows a token is a function of it and its position, so that every request's tokens are known.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <random>
#include <stdexcept>

#include "engine.hpp"

namespace slipway {
namespace {

constexpr int32_t vocab_size = 50, eos = 0;

int32_t next_token(int32_t token, int32_t position) { return (token * 7 + position * 3 + 1) % vocab_size; }

void require(bool holds, const char* what) {
  if (!holds) throw std::logic_error(what);
}

class Drawing final : public Executor {
 public:
  std::optional<std::string> begin(const Batch& batch) override {
    require(begun_.size() < 2, "a third step before the first was finished");
    Step step;
    for (int32_t row = 0; row < batch.num_logit_rows; ++row) {
      const int32_t at = batch.logit_rows[row], stated = batch.token_ids[at];
      const int32_t token = stated >= 0 ? stated : last_.at(static_cast<size_t>(~stated));
      step.tokens.push_back(next_token(token, batch.positions[at]));
      step.drawn.push_back(batch.draws[row].on_device && random_() % 60 ? step.tokens.back() : left_to_host);
    }
    last_ = step.tokens;
    begun_.push_back(std::move(step));
    return std::nullopt;
  }
  void finish() override {
    finished_ = std::move(begun_.at(0));
    begun_.pop_front();
  }
  bool draws() const override { return true; }
  int32_t drawn(int32_t row) const override { return finished_.drawn.at(static_cast<size_t>(row)); }
  void bring_logits(std::span<const int32_t> rows) override {
    require(begun_.empty(), "logits that the step ahead may have overwritten");
    for (const int32_t row : rows) {
      rows_[row].fill(0);
      rows_[row].at(static_cast<size_t>(finished_.tokens.at(static_cast<size_t>(row)))) = 5;
    }
  }
  float* logits(int32_t row) const override { return rows_.at(row).data(); }
  void time_steps(bool) override {}
  const std::vector<double>& step_seconds() const override { return none_; }

 private:
  struct Step {
    std::vector<int32_t> tokens, drawn;
  };

  std::minstd_rand random_{1};
  std::vector<int32_t> last_;
  std::deque<Step> begun_;
  Step finished_;
  mutable std::map<int32_t, std::array<float, vocab_size>> rows_;
  std::vector<double> none_;
};

void run(unsigned seed) {
  std::minstd_rand random(seed);
  const auto in = [&](int32_t low, int32_t high) { return low + static_cast<int32_t>(random() % static_cast<unsigned>(high - low + 1)); };
  Plan plan{};
  plan.vocab_size = vocab_size;
  plan.kv.block_size = 4;
  plan.kv.num_blocks = in(20, 60);
  plan.limits = {.max_sequence_length = 48, .max_batch_tokens = in(8, 40), .max_sequences = in(1, 8), .max_logit_rows = 8};
  const Vocabulary vocabulary(std::vector<std::string>(vocab_size, "x"), std::vector<bool>(vocab_size), false);
  Engine engine(plan, {}, vocabulary, {eos}, 2, 1000);
  std::map<uint64_t, Request> open;
  std::map<uint64_t, std::vector<int32_t>> outputs;
  const uint64_t count = 60;
  uint64_t submitted = 0;
  while (submitted < count || !open.empty()) {
    if (submitted < count && open.size() < 20) {
      Request request;
      request.id = ++submitted;
      for (int32_t i = in(1, 20); i > 0; --i) request.prompt.push_back(in(1, vocab_size - 1));
      request.params.temperature = 0;
      request.params.max_tokens = in(1, 24);
      request.params.ignore_eos = in(0, 1);
      if (in(0, 15) == 0) request.params.logprobs = 0;
      if (in(0, 15) == 0) request.params.repetition_penalty = 1.0001f;
      open[request.id] = request;
      engine.submit(request);
    }
    if (in(0, 9) == 0 && submitted) engine.cancel(random() % submitted + 1);
    const auto events = engine.poll(submitted < count && open.size() < 20 ? 0.0005 : 5);
    require(events.has_value(), "the engine has ended");
    for (const Event& event : *events) {
      const Request& request = open.at(event.request_id);
      std::vector<int32_t>& output = outputs[event.request_id];
      for (const OutputToken& token : event.tokens) {
        const auto position = static_cast<int32_t>(request.prompt.size() + output.size()) - 1;
        require(token.token == next_token(output.empty() ? request.prompt.back() : output.back(), position), "another token than follows");
        output.push_back(token.token);
      }
      if (!event.finish) continue;
      const bool stopped = !output.empty() && output.back() == eos && !request.params.ignore_eos;
      if (*event.finish == FinishReason::stop) require(stopped, "stopped without a reason");
      if (*event.finish == FinishReason::length) require(!stopped && static_cast<int32_t>(output.size()) == *request.params.max_tokens, "another length than asked");
      require(*event.finish != FinishReason::error, event.error.c_str());
      open.erase(event.request_id);
    }
  }
  require(engine.metrics().at("steps_ahead_total") > 0, "no step began ahead");
  require(engine.metrics().at("kv_blocks_owned") == 0 || engine.metrics().at("sequences_running") > 0, "blocks are still owned");
}

}  // namespace

std::unique_ptr<Executor> make_executor(const Plan&, std::vector<std::shared_ptr<const Mapping>>, Team&) { return std::make_unique<Drawing>(); }

}  // namespace slipway

int main(int, char** argv) {
  for (unsigned seed = 1; seed <= static_cast<unsigned>(std::atoi(argv[1])); ++seed) {
    try {
      slipway::run(seed);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "seed %u: %s\n", seed, error.what());
      return 1;
    }
  }
}
