// Random schedules against a model of no arithmetic, meant to be built with sanitizers: fuzz_scheduler SECONDS [FIRST_SEED]
//
// A KV slot holds a hash of all tokens up to its position. Each step checks that every sequence reads what its own tokens
// wrote and that nobody writes where another reads; each request must end once, with the tokens that it draws alone. One
// seed is one schedule; a failure names its seed.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <stdexcept>
#include <string>

#include "random_params.hpp"
#include "scheduler.hpp"

namespace slipway {
namespace {

constexpr int32_t vocab_size = 12, eos = 0;
using Key = std::pair<uint64_t, int32_t>;  // request, sequence

void require(bool holds, const char* what) {
  if (!holds) throw std::logic_error(what);
}

uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0xFF51AFD7ED558CCDu;
  return hash ^ (hash >> 32);
}

uint64_t prefix_hash(std::span<const int32_t> tokens) {
  uint64_t hash = 1;
  for (const int32_t token : tokens) hash = mix(hash, static_cast<uint64_t>(token) + 1);
  return hash;
}

// Mostly the last token's doing, so that drafts come true; eos is rare.
std::vector<float> logits_of(std::span<const int32_t> history) {
  std::vector<float> row(vocab_size);
  const uint64_t whim = prefix_hash(history), habit = mix(7, static_cast<uint64_t>(history.back()));
  for (size_t i = 0; i < row.size(); ++i)
    row[i] = static_cast<float>(mix(habit, i) % 1024) / 128 + static_cast<float>(mix(whim, i) % 1024) / 512;
  row[eos] -= 3;
  return row;
}

Vocabulary letters() {
  std::vector<std::string> pieces;
  for (int32_t i = 0; i < vocab_size; ++i) pieces.emplace_back(1, static_cast<char>('`' + i));
  return {pieces, std::vector<bool>(vocab_size, false), false};
}

SchedulerConfig random_config(Random& random) {
  SchedulerConfig config;
  config.num_blocks = random.in(2, 20);
  config.block_size = random.in(1, 5);
  config.vocab_size = vocab_size;
  config.max_sequence_length = random.in(8, 60);
  config.max_batch_tokens = random.in(1, 24);
  config.max_sequences = random.in(1, 6);
  config.max_logit_rows = random.in(1, 10);
  config.max_queued_requests = random.in(1, 12);
  config.speculation_max_sequences = random.in(0, 6);
  config.ageing_s = 4;
  config.eos_token_ids = {eos};
  return config;
}

class Fuzz {
 public:
  explicit Fuzz(uint64_t seed) : random_(seed), config_(random_config(random_)), scheduler_(config_, &vocabulary_, &drafts_), overlaps_(random_.once_in(2)) {}

  void run() {
    for (int32_t turn = random_.in(5, 60); turn > 0; --turn) {
      if (random_.once_in(2)) add();
      if (random_.once_in(8)) cancel();
      for (uint64_t id = 0, end = random_.once_in(100) ? num_requests_ : 0; id < end; ++id) scheduler_.cancel(id, now_);
      step();
    }
    for (int32_t left = 3000; step(); --left) require(left > 0, "no end in sight");
    require(!scheduler_.has_work(), "deadlock: there is work and no step");
    require(scheduler_.kv().num_owned() == 0, "blocks are still owned");
    require(open_.empty(), "a sequence has not ended");
  }

 private:
  void add() {
    Request request;
    request.id = num_requests_++;
    for (int32_t i = random_.in(1, 30); i > 0; --i) request.prompt.push_back(random_.in(1, 2));
    request.params = random_params(random_);
    request.priority = random_.in(-2, 2);
    request.salt = static_cast<uint64_t>(random_.in(0, 1));
    if (random_.once_in(4)) request.deadline_s = now_ + random_.in(0, 10);
    const Request copy = request;
    if (!scheduler_.add(std::move(request), now_)) {
      requests_.emplace(copy.id, copy);
      for (int32_t index = 0; index < copy.params.n; ++index) open_[{copy.id, index}];
    }
    scheduler_.check_integrity();
  }

  void cancel() {
    if (num_requests_ > 0) scheduler_.cancel(random_() % num_requests_, now_);
    scheduler_.check_integrity();
  }

  bool step() {
    now_ += 1;
    const StepBatch* step = scheduler_.in_flight();
    if (!step && (step = scheduler_.next(now_))) write(*step);
    scheduler_.check_integrity();
    if (!step) {
      take(scheduler_.take_events());
      return false;
    }
    std::vector<Sampled> sampled = sample(*step);
    if (overlaps_ && !random_.once_in(6)) begin_ahead(sampled);
    if (random_.once_in(8)) cancel();
    if (random_.once_in(50)) {
      take(scheduler_.fail("the step failed", now_));
    } else {
      if (random_.once_in(50) && !sampled.empty()) sampled.back().error = "the row failed";
      take(scheduler_.commit(std::move(sampled), now_));
    }
    scheduler_.check_integrity();
    return true;
  }

  // On a GPU, which runs steps in the order they begin, and now and then cannot draw.
  void begin_ahead(std::vector<Sampled>& sampled) {
    StepBatch* ahead = scheduler_.next_ahead(now_);
    if (!ahead) return;
    for (Sampled& row : sampled)
      if (random_.once_in(10)) row = {.token = eos, .again = true, .error = {}, .logprob = {}, .top = {}};
    for (int32_t& token : ahead->token_ids) token = sampled.at(static_cast<size_t>(~token)).token;
    write(*ahead);
  }

  uint64_t& slot(const Batch& batch, int32_t i, int32_t position) {
    const int32_t block = batch.block_table[i * batch.max_blocks + position / config_.block_size];
    require(block >= 0 && block < config_.num_blocks, "a block that does not exist");
    return slots_[block * config_.block_size + position % config_.block_size];
  }

  std::vector<int32_t> tokens_of(const StepBatch& step, int32_t i) const {
    const Batch& batch = step.batch;
    const Key key{step.request_ids[static_cast<size_t>(i)], step.sequence_indices[static_cast<size_t>(i)]};
    std::vector<int32_t> tokens = requests_.at(key.first).prompt;
    const std::vector<int32_t>& output = open_.at(key);
    tokens.insert(tokens.end(), output.begin(), output.end());
    const int32_t begin = batch.cu_seqlens[i], end = batch.cu_seqlens[i + 1], first = batch.positions[begin];
    require(first + end - begin == batch.kv_lens[i], "kv_lens does not fit the positions");
    for (int32_t row = begin; row < end; ++row) {
      const auto at = static_cast<size_t>(first + row - begin);
      require(batch.positions[row] == static_cast<int32_t>(at), "positions are not contiguous");
      require(at >= tokens.size() || tokens[at] == batch.token_ids[row], "not the sequence's own token");
    }
    tokens.resize(static_cast<size_t>(first));
    tokens.insert(tokens.end(), batch.token_ids + begin, batch.token_ids + end);
    return tokens;
  }

  void write(const StepBatch& step) {
    const Batch& batch = step.batch;
    require(batch.num_tokens > 0 && batch.num_tokens <= config_.max_batch_tokens, "too many tokens");
    require(batch.num_seqs <= config_.max_sequences && batch.num_logit_rows <= config_.max_logit_rows, "too many rows");
    std::map<const uint64_t*, std::set<int32_t>> readers;
    std::vector<std::vector<int32_t>> tokens;
    for (int32_t i = 0; i < batch.num_seqs; ++i) {
      tokens.push_back(tokens_of(step, i));
      for (int32_t position = 0; position < batch.kv_lens[i]; ++position) readers[&slot(batch, i, position)].insert(i);
    }
    for (int32_t i = 0; i < batch.num_seqs; ++i)
      for (int32_t position = batch.positions[batch.cu_seqlens[i]]; position < batch.kv_lens[i]; ++position) {
        require(readers[&slot(batch, i, position)].size() == 1, "written by one, read by another");
        const uint64_t before = position ? slot(batch, i, position - 1) : 1;
        slot(batch, i, position) = mix(before, static_cast<uint64_t>(tokens[static_cast<size_t>(i)][static_cast<size_t>(position)]) + 1);
      }
    for (int32_t i = 0; i < batch.num_seqs; ++i)
      for (int32_t position = 0; position < batch.kv_lens[i]; ++position)
        require(slot(batch, i, position) == prefix_hash(std::span(tokens[static_cast<size_t>(i)]).first(static_cast<size_t>(position) + 1)),
                "another prefix's keys and values");
  }

  std::vector<Sampled> sample(const StepBatch& step) {
    std::vector<Sampled> sampled;
    for (const StepBatch::Slot& slot : step.slots)
      for (int32_t row = 0; row < slot.num_rows; ++row)
        require(!step.rows[static_cast<size_t>(slot.first_row + row)].params == !slot.sequence, "a row to sample of a sequence that left");
    for (size_t row = 0; row < step.rows.size(); ++row) {
      if (!step.rows[row].params) {
        sampled.emplace_back();
        continue;
      }
      const SampleContext& context = step.rows[row];
      const int32_t token_row = step.logit_rows[row];
      require(context.history.size() == static_cast<size_t>(step.positions[static_cast<size_t>(token_row)]) + 1, "a row's history ends elsewhere");
      require(context.history.back() == step.token_ids[static_cast<size_t>(token_row)], "a row's history ends otherwise");
      std::vector<float> logits = logits_of(context.history);
      sampled.push_back(sampler_.sample(logits, context));
    }
    return sampled;
  }

  void take(std::vector<Event> events) {
    for (const Event& event : events) {
      const Key key{event.request_id, event.sequence_index};
      require(open_.contains(key), "news of a sequence that is not open");
      const Request& request = requests_.at(key.first);
      const bool scored = request.params.prompt_logprobs && key.second == 0 && open_.at(key).empty() && !event.tokens.empty();
      require(event.prompt_logprobs.size() == (scored ? request.prompt.size() - 1 : 0), "logprobs of the prompt are missing or come twice");
      check_scores(request.prompt, event.prompt_logprobs);
      for (const OutputToken& token : event.tokens) open_[key].push_back(token.token);
      if (!event.finish) continue;
      check_output(request, key.second, open_.at(key), *event.finish);
      open_.erase(key);
    }
  }

  void check_scores(std::span<const int32_t> prompt, std::span<const OutputToken> scores) {
    for (size_t i = 0; i < scores.size(); ++i) {
      SamplingParams params;
      params.logprobs = 0;
      params.logit_bias = {{prompt[i + 1], 1000.0f}};  // it is drawn, and its logprob is the model's all the same
      std::vector<float> logits = logits_of(prompt.first(i + 1));
      const Sampled forced = sampler_.sample(logits, {.params = &params, .history = prompt.first(i + 1), .prompt_length = 1, .ending_tokens = {}});
      require(scores[i].token == prompt[i + 1] && scores[i].logprob == forced.logprob, "another logprob of the prompt");
    }
  }

  // The tokens are a prefix of what the sequence draws when it is alone; all of it if its own length ended it.
  void check_output(const Request& request, int32_t index, const std::vector<int32_t>& output, FinishReason finish) {
    const SamplingParams& params = request.params;
    std::vector<int32_t> history = request.prompt, ending = params.stop_token_ids;
    if (!params.ignore_eos) ending.push_back(eos);
    PenaltyTable penalties(request.prompt);
    for (const int32_t token : output) {
      std::vector<float> logits = logits_of(history);
      const Sampled alone = sampler_.sample(logits, {.params = &params,
                                                     .history = history,
                                                     .prompt_length = static_cast<int32_t>(request.prompt.size()),
                                                     .penalties = uses_penalties(params) ? &penalties : nullptr,
                                                     .ending_tokens = ending,
                                                     .seed = *params.seed,
                                                     .sequence_index = static_cast<uint32_t>(index)});
      require(alone.token == token, "another token than when alone");
      penalties.add_output(token);
      history.push_back(token);
    }
    const int32_t room = std::min(config_.max_sequence_length, config_.num_blocks * config_.block_size + 1) - static_cast<int32_t>(request.prompt.size());
    if (finish == FinishReason::length)
      require(static_cast<int32_t>(output.size()) == std::min(params.max_tokens.value_or(room), room), "another length than wanted");
    if (finish == FinishReason::deadline) require(output.empty() && request.deadline_s && now_ > *request.deadline_s, "no deadline was missed");
  }

  Random random_;
  SchedulerConfig config_;
  Vocabulary vocabulary_ = letters();
  PromptLookup drafts_;
  Sampler sampler_{vocab_size};
  Scheduler scheduler_;
  std::map<uint64_t, Request> requests_;
  std::map<Key, std::vector<int32_t>> open_;  // output so far of what has not ended
  std::map<int32_t, uint64_t> slots_;
  uint64_t num_requests_ = 0;
  const bool overlaps_;
  double now_ = 0;
};

}  // namespace
}  // namespace slipway

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 20;
  const uint64_t first = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  const auto start = std::chrono::steady_clock::now();
  uint64_t seed = first;
  do {
    try {
      slipway::Fuzz(seed).run();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "seed %llu: %s\n", static_cast<unsigned long long>(seed), error.what());
      return 1;
    }
    ++seed;
  } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds);
  std::printf("%llu schedules\n", static_cast<unsigned long long>(seed - first));
}
