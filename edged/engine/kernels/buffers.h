// Memory with huge pages where the system gives them, aligned to a cache line, zero at first.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace edged {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    if (!bytes) return;
#if defined(__linux__)
    // Anonymous pages are zero and take memory only when they are first written.
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      throw std::bad_alloc();
    }
    if (bytes >= (4u << 20)) madvise(data_, bytes, MADV_HUGEPAGE);
#else
    data_ = std::calloc(1, bytes);
    if (!data_) throw std::bad_alloc();
#endif
  }
  Buffer(Buffer&& other) noexcept { *this = static_cast<Buffer&&>(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    release();
    data_ = other.data_;
    bytes_ = other.bytes_;
    other.data_ = nullptr;
    other.bytes_ = 0;
    return *this;
  }
  ~Buffer() { release(); }

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void release() {
    if (!data_) return;
#if defined(__linux__)
    munmap(data_, bytes_);
#else
    std::free(data_);
#endif
    data_ = nullptr;
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace edged
