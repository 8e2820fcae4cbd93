#include "python_plan.hpp"

#include <nanobind/stl/string.h>

#include <stdexcept>

namespace nb = nanobind;

namespace slipway {
namespace {

template <class T> T get(nb::handle object, const char* name) {
  T result;
  if (nb::try_cast(object.attr(name), result)) return result;
  throw std::invalid_argument(std::string(name) + ": out of range");
}

OperandSpec operand(nb::handle from, nb::handle buffers) {
  const nb::object buffer = buffers[get<size_t>(from, "buffer")];  // IndexError
  return {get<int64_t>(buffer, "offset") + get<int64_t>(from, "offset"), get<int64_t>(from, "row_bytes")};
}

std::vector<OperandSpec> operands(nb::handle from, nb::handle buffers) {
  std::vector<OperandSpec> result;
  for (nb::handle item : from) result.push_back(operand(item, buffers));
  return result;
}

StepSpec step(nb::handle from, nb::handle buffers) {
  StepSpec result{.symbol = "", .logit_rows = get<std::string>(from, "rows") == "logit_rows",
                  .inputs = operands(from.attr("inputs"), buffers), .outputs = operands(from.attr("outputs"), buffers),
                  .weights = {}, .kv_layer = std::nullopt};
  if (!from.attr("symbol").is_none()) result.symbol = get<std::string>(from, "symbol");
  if (!from.attr("kv_layer").is_none()) result.kv_layer = get<int32_t>(from, "kv_layer");
  for (nb::handle weight : from.attr("weights")) result.weights.push_back(nb::cast<int32_t>(weight));
  return result;
}

}  // namespace

Plan plan_from_python(nb::handle manifest, const std::string& directory, int32_t num_blocks) {
  const nb::object plan = manifest.attr("plan"), limits = manifest.attr("limits"), kv = plan.attr("kv");
  Plan result{.arena_bytes = get<int64_t>(plan, "arena_bytes"),
              .shared_scratch_bytes = get<int64_t>(plan, "shared_scratch_bytes"),
              .local_scratch_bytes = get<int64_t>(plan, "local_scratch_bytes"),
              .vocab_size = get<int32_t>(plan, "vocab_size"),
              .logits = operand(plan.attr("logits"), plan.attr("buffers")),
              .kv = {get<int32_t>(kv, "layers"), get<int32_t>(kv, "block_size"), num_blocks, get<int64_t>(kv, "block_bytes")},
              .limits = {get<int32_t>(limits, "max_sequence_length"), get<int32_t>(limits, "max_batch_tokens"),
                         get<int32_t>(limits, "max_sequences"), get<int32_t>(limits, "max_logit_rows")},
              .steps = {},
              .library = directory + "/kernels/" + get<std::string>(plan, "library")};
  for (nb::handle item : plan.attr("steps")) result.steps.push_back(step(item, plan.attr("buffers")));
  return result;
}

}  // namespace slipway
