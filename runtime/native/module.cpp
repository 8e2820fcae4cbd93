// slipway.runtime._native: the runtime's inside, for runtime/*.py alone.
#include "bindings.hpp"
#include "library.hpp"

NB_MODULE(_native, module) {
  nanobind::set_leak_warnings(false);  // an interpreter that ends in the middle of a request keeps what it holds
  module.attr("abi_version") = slipway::abi_version;
  module.def("request_amx", &slipway::request_amx);
  slipway::bind_executor(module);
  slipway::bind_gpu(module);
  slipway::bind_grammars(module);
  slipway::bind_engine(module);
  slipway::bind_core(module);
}
