#include "python_plan.hpp"

#include <nanobind/stl/string.h>

#include <algorithm>
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

ExtentSpec extent(nb::handle from) {
  ExtentSpec result{ExtentSpec::Of::nothing, get<int64_t>(from, "times"), get<int64_t>(from, "per"), get<int64_t>(from, "fixed"),
                    get<bool>(from, "each_sequence")};
  if (from.attr("of").is_none()) return result;
  const auto of = get<std::string>(from, "of");
  result.of = of == "rows" ? ExtentSpec::Of::rows : of == "tokens" ? ExtentSpec::Of::tokens : ExtentSpec::Of::sequences;
  return result;
}

std::optional<MatmulSpec::ScratchRows> scratch_rows(nb::handle from) {
  if (from.is_none()) return std::nullopt;
  return MatmulSpec::ScratchRows{get<int64_t>(from, "offset"), get<int64_t>(from, "row_bytes")};
}

MatmulSpec::Number number(const std::string& name) {
  using Number = MatmulSpec::Number;
  if (name == "bf16") return Number::bf16;
  if (name == "f32") return Number::f32;
  if (name == "e4m3") return Number::e4m3;
  if (name == "e2m1") return Number::e2m1;
  throw std::invalid_argument("no type of factors or results: " + name);
}

}  // namespace

MatmulSpec matmul_from_python(nb::handle from) {
  return {.outputs = get<int64_t>(from, "outputs"), .inputs = get<int64_t>(from, "inputs"), .weight_columns = get<int64_t>(from, "weight_columns"),
          .factors = number(get<std::string>(from, "factors")), .results = number(get<std::string>(from, "results")),
          .source = scratch_rows(from.attr("source")), .destination = scratch_rows(from.attr("destination")),
          .weight = get<int32_t>(from, "weight"), .adds = get<bool>(from, "adds")};
}

namespace {

LaunchSpec launch(nb::handle from) {
  const nb::object grid = from.attr("grid");
  LaunchSpec result{.function = get<std::string>(from, "function"), .threads = get<int32_t>(from, "threads"),
                    .grid = {extent(grid[0]), extent(grid[1]), extent(grid[2])}, .shared_bytes = get<int32_t>(from, "shared_bytes"),
                    .min_rows = get<int32_t>(from, "min_rows"), .max_rows = std::nullopt, .min_new_tokens = get<int32_t>(from, "min_new_tokens"),
                    .min_sequences = get<int32_t>(from, "min_sequences"), .max_sequences = std::nullopt, .matmul = std::nullopt};
  if (!from.attr("matmul").is_none()) result.matmul = matmul_from_python(from.attr("matmul"));
  if (!from.attr("max_sequences").is_none()) result.max_sequences = get<int32_t>(from, "max_sequences");
  if (!from.attr("max_rows").is_none()) result.max_rows = get<int32_t>(from, "max_rows");
  return result;
}

StepSpec step(nb::handle from, nb::handle buffers) {
  StepSpec result{.name = get<std::string>(from, "name"), .symbol = "", .logit_rows = get<std::string>(from, "rows") == "logit_rows",
                  .inputs = operands(from.attr("inputs"), buffers), .outputs = operands(from.attr("outputs"), buffers),
                  .weights = {}, .kv_layer = std::nullopt, .image = "", .launches = {}};
  if (!from.attr("symbol").is_none()) result.symbol = get<std::string>(from, "symbol");
  if (!from.attr("kv_layer").is_none()) result.kv_layer = get<int32_t>(from, "kv_layer");
  for (nb::handle weight : from.attr("weights")) result.weights.push_back(nb::cast<int32_t>(weight));
  return result;
}

}  // namespace

Plan plan_from_python(nb::handle manifest, const std::string& directory, int32_t num_blocks, std::optional<uint64_t> emulated) {
  const nb::object plan = manifest.attr("plan"), limits = manifest.attr("limits"), kv = plan.attr("kv");
  Plan result{.arena_bytes = get<int64_t>(plan, "arena_bytes"),
              .shared_scratch_bytes = get<int64_t>(plan, "shared_scratch_bytes"),
              .local_scratch_bytes = get<int64_t>(plan, "local_scratch_bytes"),
              .vocab_size = get<int32_t>(plan, "vocab_size"),
              .logits = operand(plan.attr("logits"), plan.attr("buffers")),
              .drawn = std::nullopt,
              .kv = {get<int32_t>(kv, "layers"), get<int32_t>(kv, "block_size"), num_blocks, get<int64_t>(kv, "block_bytes")},
              .limits = {get<int32_t>(limits, "max_sequence_length"), get<int32_t>(limits, "max_batch_tokens"),
                         get<int32_t>(limits, "max_sequences"), get<int32_t>(limits, "max_logit_rows")},
              .steps = {},
              .library = directory + "/kernels/" + get<std::string>(plan, "library")};
  if (nb::cast<bool>(manifest.attr("target").attr("is_gpu"))) result.device = emulated ? Device::emulated_gpu : Device::gpu;
  if (!plan.attr("drawn").is_none()) result.drawn = operand(plan.attr("drawn"), plan.attr("buffers"));
  result.begins_early = nb::cast<bool>(manifest.attr("target").attr("begins_early"));
  result.seed = emulated.value_or(0);
  const nb::object kernels = plan.attr("kernels");
  for (nb::handle item : plan.attr("steps")) {
    StepSpec& added = result.steps.emplace_back(step(item, plan.attr("buffers")));
    if (result.device == Device::host || added.symbol.empty()) continue;
    const nb::object kernel = kernels[added.symbol.c_str()];
    added.image = emulated ? result.library : directory + "/kernels/" + get<std::string>(kernel, "image");
    for (nb::handle each : kernel.attr("launches")) added.launches.push_back(launch(each));
    result.counters = std::max(result.counters, get<int64_t>(kernel, "counters"));
  }
  return result;
}

}  // namespace slipway
