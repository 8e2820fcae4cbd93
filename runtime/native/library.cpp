#include "library.hpp"

#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <stdexcept>
#include <utility>

namespace slipway {

Library::Library(const std::string& path) : path_(path), handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
  if (!handle_) throw std::runtime_error(path + ": " + dlerror());
}

Library::~Library() {
  if (handle_) dlclose(handle_);
}

Library::Library(Library&& other) noexcept : path_(std::move(other.path_)), handle_(std::exchange(other.handle_, nullptr)) {}

Library& Library::operator=(Library&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(handle_, other.handle_);
  return *this;
}

Kernel Library::kernel(const std::string& symbol) const {
  void* address = handle_ ? dlsym(handle_, symbol.c_str()) : nullptr;
  if (!address) throw std::runtime_error(path_ + ": no kernel " + symbol);
  return reinterpret_cast<Kernel>(address);
}

void request_amx() {
#if defined(__x86_64__)
  constexpr long arch_req_xcomp_perm = 0x1023, tile_data = 18;
  if (syscall(SYS_arch_prctl, arch_req_xcomp_perm, tile_data) != 0)
    throw std::runtime_error("the kernel does not let this process use AMX tiles");
#endif
}

}  // namespace slipway
