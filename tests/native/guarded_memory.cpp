// Mapping for the native tests, in place of memory.cpp: its last line ends where a page begins that nobody may touch.
//
// AddressSanitizer does not see what masked loads and tile loads read; the processor does. Memory begins at a line, so that of
// a size that is no multiple of a line the bytes up to the page are poisoned instead, which only plain loads feel.
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <fstream>
#include <system_error>
#include <utility>

#include "memory.hpp"

namespace slipway {
namespace {

constexpr size_t page = 4096, line = 64;

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

std::byte* allocate(size_t bytes) {
  const size_t room = rounded(bytes, page);
  void* base = mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  std::byte* end = static_cast<std::byte*>(base) + room;
  std::byte* data = end - rounded(bytes, line);
  mprotect(end, page, PROT_NONE);
  ASAN_POISON_MEMORY_REGION(base, static_cast<size_t>(data - static_cast<std::byte*>(base)));
  ASAN_POISON_MEMORY_REGION(data + bytes, static_cast<size_t>(end - data) - bytes);
  return data;
}

}  // namespace

Mapping::~Mapping() {
  if (!data_) return;
  const size_t room = rounded(size_, page);
  std::byte* base = data_ + rounded(size_, line) - room;
  ASAN_UNPOISON_MEMORY_REGION(base, room);
  munmap(base, room + page);
}

Mapping::Mapping(Mapping&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Mapping Mapping::zeros(size_t bytes) { return bytes ? Mapping(allocate(bytes), bytes) : Mapping(); }

Mapping Mapping::file(const std::string& path, size_t bytes) {
  Mapping mapping = zeros(bytes);
  if (!std::ifstream(path, std::ios::binary).read(reinterpret_cast<char*>(mapping.data()), static_cast<std::streamsize>(bytes)))
    throw std::runtime_error("cannot read " + path);
  return mapping;
}

void Mapping::populate() const {}
bool Mapping::populate_zeros(size_t, size_t) const { return false; }

}  // namespace slipway
