// A whole native engine under random requests, meant to be built with sanitizers: drive_engine PLAN ENGINES [FIRST_SEED]
//
// PLAN is what written_plan.hpp reads. One seed is one engine: a team of 1 to 3 threads, requests of every kind from two
// threads at once, cancellations, and an end with or without draining. Each sequence must end once and every KV block
// come back; what the kernels compute is for other tests to judge. A failure names its seed.
#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>

#include "engine.hpp"
#include "library.hpp"
#include "random_params.hpp"
#include "written_plan.hpp"

namespace slipway {
namespace {

constexpr uint64_t requests_a_thread = 12;
constexpr int32_t eos = 0;

void require(bool holds, const char* what) {
  if (!holds) throw std::logic_error(what);
}

// Letters, halves of characters, bytes that are none, and some special tokens.
Vocabulary vocabulary(int32_t size) {
  static const char* const odd[] = {"\xC3", "\xA9", "\xF0\x9F", "\x98\x80", "\xFF", "", " caf", "\xE2\x82\xAC"};
  std::vector<std::string> pieces;
  std::vector<bool> special;
  for (int32_t i = 0; i < size; ++i) {
    pieces.emplace_back(i % 3 ? std::string(1 + i % 5 / 4, static_cast<char>('a' + i % 7)) : odd[i / 3 % 8]);
    special.push_back(i % 31 == 0);
  }
  return {pieces, special, true};
}

class Drive {
 public:
  Drive(uint64_t seed, const WrittenPlan& written)
      : random_(seed), plan_(written.plan), engine_(plan_, written.weights, vocabulary(plan_.vocab_size), {eos}, random_.in(1, 3), random_.in(8, 24)) {
    for (const int64_t page : written.guards) require(mprotect(engine_.executor().arena() + page, 4096, PROT_NONE) == 0, "no guard page");
  }

  std::map<std::string, double> run() {
    engine_.record_step_times(random_.once_in(2));
    std::vector<Request> mine = requests(0), others = requests(requests_a_thread);
    std::thread other([this, &others, seed = random_()] { submit(others, seed); });
    submit(mine, random_());
    other.join();
    const bool drains = !random_.once_in(4);
    engine_.stop(drains);
    while (const auto events = engine_.poll(60)) {
      require(!events->empty(), "a minute without news");
      for (const Event& event : *events) take(event);
    }
    require(open_.empty(), "a sequence has not ended");
    std::map<std::string, double> metrics = engine_.metrics();
    require(!drains || metrics["kv_blocks_owned"] == 0, "blocks are still owned");
    require(metrics["kv_blocks_owned"] + metrics["kv_blocks_free"] + metrics["kv_blocks_cached"] == plan_.kv.num_blocks, "blocks were lost");
    return metrics;
  }

 private:
  std::vector<Request> requests(uint64_t first_id) {
    std::vector<Request> result;
    for (uint64_t id = first_id; id < first_id + requests_a_thread; ++id) {
      result.push_back(request(id));
      open_[id] = result.back().params.n;
    }
    return result;
  }

  void submit(std::vector<Request>& requests, uint64_t seed) {
    Random random(seed);
    for (Request& request : requests) {
      const uint64_t id = request.id;
      engine_.submit(std::move(request));
      if (random.once_in(6)) engine_.cancel(random_id(random, id));
      if (random.once_in(4)) engine_.metrics();
      if (random.once_in(6)) engine_.take_step_times();
      if (random.once_in(4)) std::this_thread::sleep_for(std::chrono::milliseconds(random.in(0, 20)));
    }
  }

  static uint64_t random_id(Random& random, uint64_t below) { return random() % (below + 1); }

  Request request(uint64_t id) {
    Random random(random_());
    Request request;
    request.id = id;
    const int32_t longest = plan_.limits.max_sequence_length - 1;
    const int32_t length = random.once_in(4) ? 1 : random.once_in(3) ? random.in(1, longest) : random.in(1, 40);
    const int32_t alike = random.once_in(2) ? length : random.in(0, length);  // the same in all requests
    for (int32_t i = 0; i < length; ++i) request.prompt.push_back(i < alike ? (i * 7 + 1) % plan_.vocab_size : random.in(1, plan_.vocab_size - 1));
    request.params = random_params(random);
    if (!request.params.max_tokens && !random.once_in(4)) request.params.max_tokens = random.in(17, 60);
    request.priority = random.in(-2, 2);
    if (random.once_in(10)) request.deadline_s = 0.05;
    return request;
  }

  // One that failed has said so once for all its sequences; those may still say that they were cancelled.
  void take(const Event& event) {
    if (!event.finish || failed_.contains(event.request_id)) return;
    require(open_.contains(event.request_id), "a sequence ended twice");
    const bool failed = event.finish == FinishReason::error;
    if (failed) failed_.insert(event.request_id);
    if (failed || --open_[event.request_id] == 0) open_.erase(event.request_id);
  }

  Random random_;
  const Plan& plan_;
  Engine engine_;
  std::map<uint64_t, int32_t> open_;  // sequences that have not ended
  std::set<uint64_t> failed_;
};

}  // namespace
}  // namespace slipway

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const uint64_t engines = std::strtoull(argv[2], nullptr, 10), first = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
  uint64_t seed = first;
  std::map<std::string, double> sums;
  try {
    const slipway::WrittenPlan written = slipway::PlanReader(argv[1]).read();
    if (written.uses_amx) slipway::request_amx();
    for (; seed < first + engines; ++seed)
      for (const auto& [name, value] : slipway::Drive(seed, written).run()) sums[name] += value;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "seed %llu: %s\n", static_cast<unsigned long long>(seed), error.what());
    return 1;
  }
  for (const auto& [name, sum] : sums)
    if (name.ends_with("_total")) std::printf("%s %.0f\n", name.c_str(), sum);
}
