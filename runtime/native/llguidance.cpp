#include "llguidance.hpp"

#include <dlfcn.h>

#include <stdexcept>

namespace slipway::llg {

Library::Library(const std::string& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!handle) throw std::runtime_error(path + ": " + dlerror());
  const auto find = [&]<class Function>(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    if (!function) throw std::runtime_error(path + ": no " + name);
  };
  find(get_version, "llg_get_version");
  find(constraint_init_set_defaults, "llg_constraint_init_set_defaults");
  find(new_tokenizer_v2, "llg_new_tokenizer_v2");
  find(free_tokenizer, "llg_free_tokenizer");
  find(new_matcher, "llg_new_matcher");
  find(clone_matcher, "llg_clone_matcher");
  find(free_matcher, "llg_free_matcher");
  find(matcher_get_error, "llg_matcher_get_error");
  find(matcher_compute_mask_into, "llg_matcher_compute_mask_into");
  find(matcher_consume_token, "llg_matcher_consume_token");
  find(matcher_validate_tokens, "llg_matcher_validate_tokens");
  find(matcher_rollback, "llg_matcher_rollback");
  find(matcher_is_accepting, "llg_matcher_is_accepting");
  find(matcher_is_stopped, "llg_matcher_is_stopped");
}

}  // namespace slipway::llg
