// Owners of mapped memory: anonymous pages that start as zeros, and whole files, read-only.
#pragma once
#include <cstddef>
#include <string>

namespace slipway {

class Mapping {
 public:
  Mapping() = default;
  ~Mapping();
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;

  static Mapping zeros(size_t bytes);                           // huge pages where the system has them
  static Mapping file(const std::string& path, size_t bytes);   // shared with other processes; must be `bytes` long

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  void populate() const;  // maps every page now, so that no step pays for it
  bool populate_zeros(size_t begin, size_t bytes) const;  // the same for a part of what zeros() gave; false where the system cannot

 private:
  Mapping(std::byte* data, size_t size) : data_(data), size_(size) {}

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace slipway
