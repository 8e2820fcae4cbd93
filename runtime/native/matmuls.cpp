#include "matmuls.hpp"

#include <algorithm>
#include <cstdint>
#include <stdexcept>

namespace slipway {
namespace {

constexpr uint64_t workspace_bytes = 32 << 20, emulated_workspace_bytes = 4096;
constexpr uint32_t most_alignment = 256;

struct Type {
  int cuda;
  int64_t bits;
};
Type type_of(MatmulSpec::Number number) {
  using Number = MatmulSpec::Number;
  switch (number) {
    case Number::bf16: return {cuda_r_16bf, 16};
    case Number::f32: return {cuda_r_32f, 32};
    case Number::e4m3: return {cuda_r_8f_e4m3, 8};
    case Number::e2m1: return {cuda_r_4f_e2m1, 4};
  }
  throw std::invalid_argument("a number of no type");
}

uint32_t alignment_of(const void* at) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  return static_cast<uint32_t>(std::min<uintptr_t>(most_alignment, address & ~(address - 1)));
}

struct Operands {
  Operand factors, results, addends;  // the results themselves where nothing is added
};
Operands operands_of(const MatmulSpec& spec, const cuda::Call& call) {
  const auto operand = [&](const std::optional<MatmulSpec::ScratchRows>& in_scratch, const Operand& given) {
    return in_scratch ? Operand{call.scratch + in_scratch->offset, in_scratch->row_bytes} : given;
  };
  const Operand results = operand(spec.destination, call.outputs[0]);
  return {operand(spec.source, call.inputs[0]), results, spec.adds ? call.inputs[1] : results};
}

const std::byte* weight_of(const MatmulSpec& spec, const cuda::Call& call) { return call.weights[spec.weight]; }

// Throws std::runtime_error.
void check(CublasStatus status, const std::string& what) {
  if (status != cublas_success) throw std::runtime_error("GPU: " + what + ": cuBLASLt says status " + std::to_string(status));
}

}  // namespace

Matmuls::Matmuls(const Gpu& gpu, bool emulated)
    : gpu_(gpu),
      api_(emulated ? emulated_cublaslt() : cublaslt_library()),
      workspace_(gpu, emulated ? emulated_workspace_bytes : workspace_bytes, "cuBLASLt") {
  check(api_.create(&handle_), "its start");
}

Matmuls::~Matmuls() { api_.destroy(handle_); }

Matmuls::Key Matmuls::key_of(const MatmulSpec& spec, const cuda::Call& call, int32_t rows) {
  const auto [factors, results, addends] = operands_of(spec, call);
  return {spec.outputs, spec.inputs, spec.weight_columns, static_cast<int64_t>(spec.factors), static_cast<int64_t>(spec.results), rows, factors.row_bytes,
          results.row_bytes, addends.row_bytes, spec.adds, alignment_of(weight_of(spec, call)), alignment_of(factors.data), alignment_of(results.data),
          alignment_of(addends.data)};
}

// cuBLASLt's matrices lie column after column: rows of ours are its columns, and W is transposed.
void Matmuls::enqueue(const MatmulSpec& spec, const cuda::Call& call, int32_t rows, const std::string& name) {
  const auto [factors, results, addends] = operands_of(spec, call);
  const auto created = [&](auto create, auto destroy, auto... arguments) {
    void* handle = nullptr;
    check(create(&handle, arguments...), name);
    return Owned<void*>(handle, destroy);
  };
  const auto layout = [&](MatmulSpec::Number number, int64_t length, int64_t count, int64_t leading) {
    return created(api_.create_layout, api_.destroy_layout, type_of(number).cuda, static_cast<uint64_t>(length), static_cast<uint64_t>(count), leading);
  };
  const auto a = layout(spec.factors, spec.inputs, spec.outputs, spec.weight_columns);
  const auto b = layout(spec.factors, spec.inputs, rows, factors.row_bytes * 8 / type_of(spec.factors).bits);
  const auto c = layout(spec.results, spec.outputs, rows, addends.row_bytes * 8 / type_of(spec.results).bits);
  const auto d = layout(spec.results, spec.outputs, rows, results.row_bytes * 8 / type_of(spec.results).bits);
  const auto desc = created(api_.create_desc, api_.destroy_desc, cublas_compute_32f, cuda_r_32f);
  const auto set = [&](int attribute, auto value) { check(api_.set_desc(desc.get(), attribute, &value, sizeof value), name); };
  set(cublaslt_desc_transa, int32_t{cublas_op_t});
  const std::byte* weight = weight_of(spec, call);
  if (spec.factors == MatmulSpec::Number::e2m1) {
    set(cublaslt_desc_a_scale_mode, int32_t{cublaslt_scale_vec16_ue4m3});
    set(cublaslt_desc_b_scale_mode, int32_t{cublaslt_scale_vec16_ue4m3});
    set(cublaslt_desc_a_scale_pointer, static_cast<const void*>(weight + spec.outputs * spec.weight_columns / 2));
    set(cublaslt_desc_b_scale_pointer, static_cast<const void*>(factors.data + rows * factors.row_bytes));
  }

  const auto choose = [&] {
    const auto preference = created(api_.create_preference, api_.destroy_preference);
    const uint64_t room = workspace_.size();
    check(api_.set_preference(preference.get(), cublaslt_pref_max_workspace_bytes, &room, sizeof room), name);
    const std::pair<int, const void*> pointers[] = {{cublaslt_pref_alignment_a, weight}, {cublaslt_pref_alignment_b, factors.data},
                                                    {cublaslt_pref_alignment_c, addends.data}, {cublaslt_pref_alignment_d, results.data}};
    for (const auto& [attribute, pointer] : pointers) {
      const uint32_t alignment = alignment_of(pointer);
      check(api_.set_preference(preference.get(), attribute, &alignment, sizeof alignment), name);
    }
    CublasLtHeuristic best{};
    int found = 0;
    check(api_.find_algorithms(handle_, desc.get(), a.get(), b.get(), c.get(), d.get(), preference.get(), 1, &best, &found), name);
    if (!found) throw std::runtime_error("GPU: " + name + ": cuBLASLt has no algorithm for " + std::to_string(rows) + " rows");
    return best.algo;
  };
  const Key key = key_of(spec, call, rows);
  if (!algorithms_.contains(key)) algorithms_[key] = choose();
  const float one = 1, added = spec.adds ? 1 : 0;
  check(api_.matmul(handle_, desc.get(), &one, weight, a.get(), factors.data, b.get(), &added, addends.data, c.get(), results.data, d.get(),
                    &algorithms_[key], workspace_.data(), workspace_.size(), gpu_.stream()), name);
}

void Matmuls::rehearse(const MatmulSpec& spec, const cuda::Call& call, int32_t rows, const std::string& name) {
  if (!algorithms_.contains(key_of(spec, call, rows))) enqueue(spec, call, rows, name);
}

}  // namespace slipway
