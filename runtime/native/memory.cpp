#include "memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

namespace slipway {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

constexpr size_t huge_page = 2 << 20;

// Address space that begins at a huge page, as a file must to be mapped in huge pages.
std::byte* reserve_aligned(size_t bytes) {
  void* data = mmap(nullptr, bytes + huge_page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) fail("reserving " + std::to_string(bytes) + " bytes");
  const auto begin = reinterpret_cast<uintptr_t>(data), aligned = (begin + huge_page - 1) & ~(huge_page - 1), end = begin + bytes + huge_page;
  if (aligned > begin) munmap(data, aligned - begin);
  const uintptr_t used = (aligned + bytes + 4095) & ~uintptr_t{4095};
  if (end > used) munmap(reinterpret_cast<void*>(used), end - used);
  return reinterpret_cast<std::byte*>(aligned);
}

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
  std::byte* place = reserve_aligned(bytes);
  void* data = mmap(place, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, file.fd, 0);
  if (data == MAP_FAILED) fail(path);
  madvise(data, bytes, MADV_HUGEPAGE);  // an eighth of the time of streaming weights would go into page walks
  return {static_cast<std::byte*>(data), bytes};
}

void Mapping::populate() const {
  if (!data_ || madvise(data_, size_, MADV_POPULATE_READ) == 0) return;
  for (size_t at = 0; at < size_; at += 4096) static_cast<void>(*static_cast<volatile std::byte*>(data_ + at));  // before Linux 5.14
}

bool Mapping::populate_zeros(size_t begin, size_t bytes) const {
  return madvise(data_ + begin, std::min(bytes, size_ - begin), MADV_POPULATE_WRITE) == 0;
}

}  // namespace slipway
