// cuBLASLt of a GPU that is not there: descriptors are kept as they are set, and what the library asks of them is asked here too.
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "cublaslt_api.hpp"
#include "emulated_cuda.hpp"
#include "slipway/codes.hpp"

namespace slipway {
namespace {

struct Desc {
  int compute_type, scale_type;
  int32_t transposes[2] = {cublas_op_n, cublas_op_n};  // of A, of B
  int32_t scale_modes[2] = {cublaslt_scale_32f, cublaslt_scale_32f};
  const void* scales[2] = {nullptr, nullptr};
};

struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t leading;
};

struct Preference {
  uint64_t workspace_bytes = 0;
  uint32_t alignments[4] = {256, 256, 256, 256};
};

uint64_t bits_of(int type) { return type == cuda_r_32f ? 32 : type == cuda_r_16bf ? 16 : type == cuda_r_8f_e4m3 ? 8 : 4; }

// A number of the matrix that begins at `from`.
float load(const std::byte* from, uint64_t number, int type) {
  const std::byte* at = from + number * bits_of(type) / 8;
  if (type == cuda_r_4f_e2m1) return codes::e2m1(static_cast<uint8_t>(*at) >> number % 2 * 4 & 15);
  if (type == cuda_r_8f_e4m3) return codes::e4m3(static_cast<uint8_t>(*at));
  if (type == cuda_r_32f) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return codes::from_bf16(bits);
}

void store(std::byte* at, int type, float value) {
  if (type == cuda_r_32f) {
    std::memcpy(at, &value, sizeof value);
    return;
  }
  const uint16_t rounded = codes::to_bf16(value);
  std::memcpy(at, &rounded, sizeof rounded);
}

// Where the scale of 16 neighbours of a vector lies: pieces of 128 vectors and four scales, [32][4][4] bytes.
uint64_t scale_at(uint64_t vector, uint64_t group, uint64_t length) {
  const uint64_t pieces = (length + 63) / 64;
  return (vector / 128 * pieces + group / 4) * 512 + vector % 32 * 16 + vector % 128 / 32 * 4 + group % 4;
}

// As floats, each row of the product's sums in one piece: of A^T its rows, of B its columns. scales: null, or of groups of 16.
std::vector<float> floats(const std::byte* from, const Layout& layout, const std::byte* scales) {
  std::vector<float> result(layout.rows * layout.columns);
  for (uint64_t c = 0; c < layout.columns; ++c)
    for (uint64_t r = 0; r < layout.rows; ++r) {
      const float scale = scales ? codes::e4m3(static_cast<uint8_t>(scales[scale_at(c, r / 16, layout.rows)])) : 1;
      result[c * layout.rows + r] = scale * load(from, c * static_cast<uint64_t>(layout.leading) + r, layout.type);
    }
  return result;
}

// What is asked of matrices that the runtime multiplies: of fp8 and fp4 also that rows of factors are whole sixteens of bytes and results whole
// sixteens of numbers, of fp4 that it is scaled in groups.
bool fits(const Desc& desc, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
  const auto holds = [](const Layout& l) { return l.leading >= static_cast<int64_t>(l.rows) && l.rows && l.columns; };
  const bool shapes = a.rows == b.rows && a.columns == d.rows && b.columns == d.columns && c.rows == d.rows && c.columns == d.columns && c.type == d.type;
  const bool is_fp4 = a.type == cuda_r_4f_e2m1, is_coded = is_fp4 || a.type == cuda_r_8f_e4m3;
  const bool factors = a.type == b.type && (a.type == cuda_r_16bf || is_coded) && (d.type == cuda_r_16bf || d.type == cuda_r_32f);
  const uint64_t whole = 16 * 8 / bits_of(a.type);  // numbers of sixteen bytes
  const bool aligned = !is_coded || (a.rows % whole == 0 && d.rows % 16 == 0 && static_cast<uint64_t>(a.leading) % whole == 0 && static_cast<uint64_t>(b.leading) % whole == 0);
  const int mode = is_fp4 ? cublaslt_scale_vec16_ue4m3 : cublaslt_scale_32f;
  const auto scaled = [&](int which) { return desc.scale_modes[which] == mode && (!is_fp4 || (desc.scales[which] && reinterpret_cast<uintptr_t>(desc.scales[which]) % 16 == 0)); };
  return desc.compute_type == cublas_compute_32f && desc.scale_type == cuda_r_32f && desc.transposes[0] == cublas_op_t && desc.transposes[1] == cublas_op_n &&
         holds(a) && holds(b) && holds(c) && holds(d) && shapes && factors && aligned && scaled(0) && scaled(1);
}

template <class T> T& as(void* handle) { return *static_cast<T*>(handle); }

template <class T> CublasStatus set(T& to, const void* value, size_t bytes) {
  if (bytes != sizeof to) return cublas_invalid_value;
  std::memcpy(&to, value, bytes);
  return cublas_success;
}

CuResult multiply(const Desc& desc, const Layout& a, const Layout& b, const Layout& d, const std::byte* weights, const std::byte* factors, float alpha,
                  const Layout& c, const std::byte* addends, float beta, std::byte* results) {
  const std::vector<float> w = floats(weights, a, static_cast<const std::byte*>(desc.scales[0])), x = floats(factors, b, static_cast<const std::byte*>(desc.scales[1]));
  for (uint64_t row = 0; row < d.columns; ++row)
    for (uint64_t output = 0; output < d.rows; ++output) {
      constexpr int lanes = 16;
      float sums[lanes] = {};
      const float *left = &w[output * a.rows], *right = &x[row * a.rows];
      for (uint64_t k = 0; k < a.rows; ++k) sums[k % lanes] += left[k] * right[k];
      float sum = 0;
      for (const float part : sums) sum += part;
      const float addend = beta == 0 ? 0 : beta * load(addends, row * static_cast<uint64_t>(c.leading) + output, c.type);
      store(results + (row * static_cast<uint64_t>(d.leading) + output) * bits_of(d.type) / 8, d.type, alpha * sum + addend);
    }
  return cuda_success;
}

CublasLtApi make() {
  CublasLtApi api{};
  api.create = [](CublasLtHandle* handle) {
    static int one;
    return *handle = &one, cublas_success;
  };
  api.destroy = [](CublasLtHandle) { return cublas_success; };
  api.create_desc = [](CublasLtDesc* desc, int compute_type, int scale_type) { return *desc = new Desc{compute_type, scale_type}, cublas_success; };
  api.destroy_desc = [](CublasLtDesc desc) { return delete &as<Desc>(desc), cublas_success; };
  api.set_desc = [](CublasLtDesc desc, int attribute, const void* value, size_t bytes) {
    auto& own = as<Desc>(desc);
    switch (attribute) {
      case cublaslt_desc_transa: case cublaslt_desc_transb: return set(own.transposes[attribute - cublaslt_desc_transa], value, bytes);
      case cublaslt_desc_a_scale_mode: case cublaslt_desc_b_scale_mode: return set(own.scale_modes[attribute - cublaslt_desc_a_scale_mode], value, bytes);
      case cublaslt_desc_a_scale_pointer: case cublaslt_desc_b_scale_pointer: return set(own.scales[attribute - cublaslt_desc_a_scale_pointer], value, bytes);
    }
    return cublas_invalid_value;
  };
  api.create_layout = [](CublasLtLayout* layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    return *layout = new Layout{type, rows, columns, leading}, cublas_success;
  };
  api.destroy_layout = [](CublasLtLayout layout) { return delete &as<Layout>(layout), cublas_success; };
  api.create_preference = [](CublasLtPreference* preference) { return *preference = new Preference, cublas_success; };
  api.destroy_preference = [](CublasLtPreference preference) { return delete &as<Preference>(preference), cublas_success; };
  api.set_preference = [](CublasLtPreference preference, int attribute, const void* value, size_t bytes) {
    auto& own = as<Preference>(preference);
    if (attribute == cublaslt_pref_max_workspace_bytes) return set(own.workspace_bytes, value, bytes);
    if (attribute < cublaslt_pref_alignment_a || attribute > cublaslt_pref_alignment_d) return cublas_invalid_value;
    return set(own.alignments[attribute - cublaslt_pref_alignment_a], value, bytes);
  };
  // The algorithm keeps what it may take for granted: how pointers are aligned, and how much room it has.
  api.find_algorithms = [](CublasLtHandle, CublasLtDesc desc, CublasLtLayout a, CublasLtLayout b, CublasLtLayout c, CublasLtLayout d, CublasLtPreference preference,
                           int wanted, CublasLtHeuristic* results, int* found) {
    *found = 0;
    if (wanted < 1) return cublas_invalid_value;
    if (!fits(as<Desc>(desc), as<Layout>(a), as<Layout>(b), as<Layout>(c), as<Layout>(d))) return cublas_not_supported;
    const auto& preferred = as<Preference>(preference);
    results[0] = {.algo = {}, .workspace_bytes = preferred.workspace_bytes, .state = cublas_success, .waves = 1, .reserved = {}};
    for (int i = 0; i < 4; ++i) results[0].algo.data[i] = preferred.alignments[i];
    results[0].algo.data[4] = preferred.workspace_bytes;
    return *found = 1, cublas_success;
  };
  api.matmul = [](CublasLtHandle, CublasLtDesc desc, const void* alpha, const void* a, CublasLtLayout a_layout, const void* b, CublasLtLayout b_layout, const void* beta,
                  const void* c, CublasLtLayout c_layout, void* d, CublasLtLayout d_layout, const CublasLtAlgo* algo, void* workspace, size_t workspace_bytes,
                  CuStream stream) {
    const Desc described = as<Desc>(desc);
    const Layout left = as<Layout>(a_layout), right = as<Layout>(b_layout), addends = as<Layout>(c_layout), results = as<Layout>(d_layout);
    if (!fits(described, left, right, addends, results)) return cublas_not_supported;
    float of_product, of_addends;
    std::memcpy(&of_product, alpha, sizeof of_product);
    std::memcpy(&of_addends, beta, sizeof of_addends);
    const void* pointers[] = {a, b, c, d};
    for (int i = 0; i < 4; ++i)
      if (!algo || !pointers[i] || reinterpret_cast<uintptr_t>(pointers[i]) % algo->data[i]) return cublas_invalid_value;
    if (workspace_bytes < algo->data[4] || (workspace_bytes && !workspace)) return cublas_invalid_value;
    const auto work = [=] {
      std::memset(workspace, 0xff, workspace_bytes);
      return multiply(described, left, right, results, static_cast<const std::byte*>(a), static_cast<const std::byte*>(b), of_product, addends,
                      static_cast<const std::byte*>(c), of_addends, static_cast<std::byte*>(d));
    };
    return emulated_enqueue(stream, work) == cuda_success ? cublas_success : cublas_invalid_value;
  };
  return api;
}

}  // namespace

const CublasLtApi& emulated_cublaslt() {
  static const CublasLtApi api = make();
  return api;
}

}  // namespace slipway
