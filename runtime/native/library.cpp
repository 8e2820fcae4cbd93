#include "library.hpp"

#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <utility>

namespace slipway {

// dlopen takes a name that it knows for the library it knows, whatever lies there now: each is opened under a name of its own.
void* open_library(const std::string& path) {
  const std::string absolute = std::filesystem::absolute(path);
  char folder[] = "/tmp/slipway-library-XXXXXX";
  if (!mkdtemp(folder)) return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  const std::string name = std::string(folder) + "/" + std::filesystem::path(path).filename().string();
  const bool linked = symlink(absolute.c_str(), name.c_str()) == 0;
  void* handle = dlopen(linked ? name.c_str() : path.c_str(), RTLD_NOW | RTLD_LOCAL);
  unlink(name.c_str());
  rmdir(folder);
  return handle;
}

Library::Library(const std::string& path) : path_(path), handle_(open_library(path)) {
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
