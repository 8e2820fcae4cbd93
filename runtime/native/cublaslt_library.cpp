#include "cublaslt_api.hpp"
#include "shared_library.hpp"

namespace slipway {
namespace {

CublasLtApi load() {
  const SharedLibrary library("libcublasLt.so.13", "cuBLASLt");
  const auto find = [&](auto& function, const char* name) { library.find(function, name); };
  CublasLtApi api{};
  find(api.create, "cublasLtCreate");
  find(api.destroy, "cublasLtDestroy");
  find(api.create_desc, "cublasLtMatmulDescCreate");
  find(api.destroy_desc, "cublasLtMatmulDescDestroy");
  find(api.set_desc, "cublasLtMatmulDescSetAttribute");
  find(api.create_layout, "cublasLtMatrixLayoutCreate");
  find(api.destroy_layout, "cublasLtMatrixLayoutDestroy");
  find(api.create_preference, "cublasLtMatmulPreferenceCreate");
  find(api.destroy_preference, "cublasLtMatmulPreferenceDestroy");
  find(api.set_preference, "cublasLtMatmulPreferenceSetAttribute");
  find(api.find_algorithms, "cublasLtMatmulAlgoGetHeuristic");
  find(api.matmul, "cublasLtMatmul");
  return api;
}

}  // namespace

const CublasLtApi& cublaslt_library() {
  static const CublasLtApi api = load();
  return api;
}

}  // namespace slipway
