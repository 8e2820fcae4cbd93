// Multiplications by cuBLASLt in the stream of a GPU, or of an emulated one.
#pragma once
#include <array>
#include <map>
#include <string>

#include "cublaslt_api.hpp"
#include "gpu.hpp"
#include "plan.hpp"
#include "slipway/cuda/call.hpp"

namespace slipway {

class Matmuls {
 public:
  // Throws std::runtime_error where cuBLASLt is not found. gpu outlives it.
  Matmuls(const Gpu& gpu, bool emulated);
  ~Matmuls();
  Matmuls(const Matmuls&) = delete;

  // Into the stream, or the capture under way. name: of the step, for messages.
  void enqueue(const MatmulSpec& spec, const cuda::Call& call, int32_t rows, const std::string& name);

  // The same, only if none like it was enqueued yet: cuBLASLt loads a kernel when it first launches it, and that is not for captures. What
  // is multiplied is of no use.
  void rehearse(const MatmulSpec& spec, const cuda::Call& call, int32_t rows, const std::string& name);

 private:
  // What cuBLASLt chooses an algorithm by: shapes, types, strides, and how pointers are aligned.
  using Key = std::array<int64_t, 14>;
  static Key key_of(const MatmulSpec& spec, const cuda::Call& call, int32_t rows);

  const Gpu& gpu_;
  const CublasLtApi& api_;
  CublasLtHandle handle_ = nullptr;
  GpuBytes workspace_;  // of one multiplication after the other
  std::map<Key, CublasLtAlgo> algorithms_;
};

}  // namespace slipway
