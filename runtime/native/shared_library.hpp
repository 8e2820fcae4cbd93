// Functions of a library that is there or not, found when they are first needed.
#pragma once
#include <dlfcn.h>

#include <stdexcept>
#include <string>
#include <type_traits>

namespace slipway {

class SharedLibrary {
 public:
  // Throws std::runtime_error: "no <what> on this machine". It stays loaded.
  SharedLibrary(const char* name, const char* what) : name_(name), handle_(dlopen(name, RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_) throw std::runtime_error("no " + std::string(what) + " on this machine (" + dlerror() + ")");
  }

  // Throws std::runtime_error. hint: why it may lack the function.
  template <class Function> void find(Function& function, const char* name, const char* hint = "") const {
    void* address = dlsym(handle_, name);
    if (!address) throw std::runtime_error(std::string(name_) + " has no " + name + hint);
    function = reinterpret_cast<std::remove_reference_t<Function>>(address);
  }

 private:
  const char* name_;
  void* handle_;
};

}  // namespace slipway
