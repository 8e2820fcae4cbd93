// The text that written_plan.py makes of an engine directory -> what the native engine is constructed from.
//
// Words between spaces. A list is its length and then its items.
#pragma once
#include <cstdint>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "memory.hpp"
#include "plan.hpp"

namespace slipway {

struct WrittenPlan {
  Plan plan{};
  std::vector<std::shared_ptr<const Mapping>> weights;
  std::vector<int64_t> guards;  // offsets of arena pages that no kernel may touch
  bool uses_amx = false;
};

class PlanReader {
 public:
  explicit PlanReader(const std::string& path) : in_(path) { in_.exceptions(std::ios::failbit | std::ios::badbit | std::ios::eofbit); }

  WrittenPlan read() {
    WrittenPlan written;
    Plan& plan = written.plan;
    plan.library = next<std::string>();
    written.uses_amx = next<bool>();
    plan.arena_bytes = next<int64_t>();
    plan.shared_scratch_bytes = next<int64_t>();
    plan.local_scratch_bytes = next<int64_t>();
    plan.vocab_size = next<int32_t>();
    plan.logits = operand();
    plan.kv = {next<int32_t>(), next<int32_t>(), next<int32_t>(), next<int64_t>()};
    plan.limits = {next<int32_t>(), next<int32_t>(), next<int32_t>(), next<int32_t>()};
    written.guards = list([this] { return next<int64_t>(); });
    written.weights = list([this] { return weight(); });
    plan.steps = list([this] { return step(); });
    return written;
  }

 private:
  template <class T> T next() {
    T value;
    in_ >> value;
    return value;
  }

  template <class Item> std::vector<std::invoke_result_t<Item>> list(Item item) {
    std::vector<std::invoke_result_t<Item>> items;
    for (auto left = next<size_t>(); left > 0; --left) items.push_back(item());
    return items;
  }

  OperandSpec operand() { return {next<int64_t>(), next<int64_t>()}; }

  std::shared_ptr<const Mapping> weight() {
    const auto path = next<std::string>();
    return std::make_shared<const Mapping>(Mapping::file(path, next<size_t>()));
  }

  StepSpec step() {
    StepSpec step{.name = "", .symbol = next<std::string>(), .logit_rows = next<bool>(), .inputs = {}, .outputs = {}, .weights = {}, .kv_layer = {},
                  .image = "", .launches = {}};
    step.inputs = list([this] { return operand(); });
    step.outputs = list([this] { return operand(); });
    step.weights = list([this] { return next<int32_t>(); });
    const std::vector<int32_t> kv_layers = list([this] { return next<int32_t>(); });
    if (!kv_layers.empty()) step.kv_layer = kv_layers.front();
    return step;
  }

  std::ifstream in_;
};

}  // namespace slipway
