// The part of cuBLASLt that the runtime calls: of the library, found when it is first asked for, or of the emulation.
//
// Names and signatures are the library's own (cuBLAS 13), so that one table serves both.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda_api.hpp"

namespace slipway {

using CublasStatus = int;
using CublasLtHandle = void*;
using CublasLtDesc = void*;        // cublasLtMatmulDesc_t
using CublasLtLayout = void*;      // cublasLtMatrixLayout_t
using CublasLtPreference = void*;  // cublasLtMatmulPreference_t

inline constexpr CublasStatus cublas_success = 0, cublas_invalid_value = 7, cublas_not_supported = 15;
inline constexpr int cublas_compute_32f = 68;                                        // CUBLAS_COMPUTE_32F
inline constexpr int cuda_r_32f = 0, cuda_r_16bf = 14, cuda_r_8f_e4m3 = 28, cuda_r_4f_e2m1 = 33;                                            // cudaDataType
inline constexpr int cublas_op_n = 0, cublas_op_t = 1;
inline constexpr int cublaslt_desc_transa = 3, cublaslt_desc_transb = 4;             // int32
inline constexpr int cublaslt_desc_a_scale_pointer = 17, cublaslt_desc_b_scale_pointer = 18;  // const void*
inline constexpr int cublaslt_desc_a_scale_mode = 31, cublaslt_desc_b_scale_mode = 32;        // int32
inline constexpr int cublaslt_scale_32f = 0, cublaslt_scale_vec16_ue4m3 = 1;                  // modes: one number; an e4m3 for 16 neighbours
inline constexpr int cublaslt_pref_max_workspace_bytes = 1;                          // uint64
inline constexpr int cublaslt_pref_alignment_a = 5, cublaslt_pref_alignment_b = 6, cublaslt_pref_alignment_c = 7, cublaslt_pref_alignment_d = 8;  // uint32

struct CublasLtAlgo {
  uint64_t data[8];
};
struct CublasLtHeuristic {
  CublasLtAlgo algo;
  size_t workspace_bytes;
  CublasStatus state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(CublasLtHeuristic) == 96);

struct CublasLtApi {
  CublasStatus (*create)(CublasLtHandle*);
  CublasStatus (*destroy)(CublasLtHandle);
  CublasStatus (*create_desc)(CublasLtDesc*, int compute_type, int scale_type);
  CublasStatus (*destroy_desc)(CublasLtDesc);
  CublasStatus (*set_desc)(CublasLtDesc, int attribute, const void* value, size_t bytes);
  CublasStatus (*create_layout)(CublasLtLayout*, int type, uint64_t rows, uint64_t columns, int64_t leading);
  CublasStatus (*destroy_layout)(CublasLtLayout);
  CublasStatus (*create_preference)(CublasLtPreference*);
  CublasStatus (*destroy_preference)(CublasLtPreference);
  CublasStatus (*set_preference)(CublasLtPreference, int attribute, const void* value, size_t bytes);
  CublasStatus (*find_algorithms)(CublasLtHandle, CublasLtDesc, CublasLtLayout a, CublasLtLayout b, CublasLtLayout c, CublasLtLayout d, CublasLtPreference,
                                  int wanted, CublasLtHeuristic*, int* found);
  // D = alpha op(A) op(B) + beta C, matrices column after column.
  CublasStatus (*matmul)(CublasLtHandle, CublasLtDesc, const void* alpha, const void* a, CublasLtLayout, const void* b, CublasLtLayout, const void* beta,
                         const void* c, CublasLtLayout, void* d, CublasLtLayout, const CublasLtAlgo*, void* workspace, size_t workspace_bytes, CuStream);
};

// Throws std::runtime_error, in one sentence, where the library is not found.
const CublasLtApi& cublaslt_library();

// Work goes into streams of the emulated CUDA driver.
const CublasLtApi& emulated_cublaslt();

}  // namespace slipway
