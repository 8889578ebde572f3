// Zeroed memory for weights, caches and buffers: mapped on demand, in 2 MiB pages where the system has them.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace octavo {

class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes) : bytes_(bytes) {
    if (!bytes) return;
    constexpr size_t huge = size_t{2} << 20;
    mapped_ = (bytes + huge - 1) / huge * huge + (bytes >= huge ? huge : 0);
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) {
      base_ = nullptr;
      throw std::bad_alloc();
    }
    data_ = base_;
    if (bytes >= huge) {
      const auto address = reinterpret_cast<size_t>(base_);
      data_ = reinterpret_cast<void*>((address + huge - 1) / huge * huge);
#if defined(MADV_HUGEPAGE)
      madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    }
  }
  ~Memory() {
    if (base_) munmap(base_, mapped_);
  }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void swap(Memory& other) {
    std::swap(base_, other.base_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(mapped_, other.mapped_);
  }
  void* base_ = nullptr;
  void* data_ = nullptr;
  size_t bytes_ = 0, mapped_ = 0;
};

}  // namespace octavo
