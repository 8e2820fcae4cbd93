// Multiplications by cuBLASLt in the stream of a GPU, or of an emulated one.
#pragma once
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
  void enqueue(const MatmulSpec& spec, const cuda::Call& call, int32_t rows, const std::string& name) const;

 private:
  const Gpu& gpu_;
  const CublasLtApi& api_;
  CublasLtHandle handle_ = nullptr;
  GpuBytes workspace_;  // of one multiplication after the other
};

}  // namespace slipway
