// The shared object with an engine's kernels.
#pragma once
#include <string>

#include "slipway/abi.hpp"

namespace slipway {

// dlopen of what is at the path now; null: dlerror() says why.
void* open_library(const std::string& path);

class Library {
 public:
  Library() = default;
  explicit Library(const std::string& path);  // throws std::runtime_error
  ~Library();
  Library(Library&& other) noexcept;
  Library& operator=(Library&& other) noexcept;

  Kernel kernel(const std::string& symbol) const;  // throws std::runtime_error

 private:
  std::string path_;
  void* handle_ = nullptr;
};

void request_amx();  // Linux hands out the tile registers on request, once a process; throws std::runtime_error

}  // namespace slipway
