#include "memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace slipway {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

struct Descriptor {
  int fd;
  ~Descriptor() { close(fd); }
};

}  // namespace

Mapping::~Mapping() {
  if (data_) munmap(data_, size_);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Mapping Mapping::zeros(size_t bytes) {
  if (bytes == 0) return {};
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) fail("mapping " + std::to_string(bytes) + " bytes");
  madvise(data, bytes, MADV_HUGEPAGE);  // advice: a kernel without huge pages says no
  return {static_cast<std::byte*>(data), bytes};
}

Mapping Mapping::file(const std::string& path, size_t bytes) {
  const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  struct stat status;
  if (file.fd < 0 || fstat(file.fd, &status) != 0) fail(path);
  if (static_cast<size_t>(status.st_size) != bytes) {
    errno = EINVAL;
    fail(path + " changed its length");
  }
  if (bytes == 0) return {};
  void* data = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.fd, 0);
  if (data == MAP_FAILED) fail(path);
  return {static_cast<std::byte*>(data), bytes};
}

void Mapping::populate() const {
  if (!data_ || madvise(data_, size_, MADV_POPULATE_READ) == 0) return;
  for (size_t at = 0; at < size_; at += 4096) static_cast<void>(*static_cast<volatile std::byte*>(data_ + at));  // before Linux 5.14
}

}  // namespace slipway
