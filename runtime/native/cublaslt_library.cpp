#include <dlfcn.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "cublaslt_api.hpp"

namespace slipway {
namespace {

constexpr const char* library_name = "libcublasLt.so.13";

CublasLtApi load() {
  void* library = dlopen(library_name, RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error("no cuBLASLt on this machine (" + std::string(dlerror()) + ")");
  const auto find = [&](auto& function, const char* name) {
    void* address = dlsym(library, name);
    if (!address) throw std::runtime_error(std::string(library_name) + " has no " + name);
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
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
