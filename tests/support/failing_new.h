// operator new of this test program, of which the n-th call of a thread fails. Include it in one source file only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace pagedkv::testing {

inline thread_local std::int64_t allocations_until_failure = -1;  // below 0: never
inline thread_local std::int64_t num_allocations = 0;

/// While it lives, allocation number `fail_at` of this thread (from 0) fails; -1 only counts.
class FailingNew {
 public:
  explicit FailingNew(std::int64_t fail_at) {
    num_allocations = 0;
    allocations_until_failure = fail_at;
  }
  FailingNew(const FailingNew&) = delete;
  FailingNew& operator=(const FailingNew&) = delete;
  ~FailingNew() { allocations_until_failure = -1; }
  [[nodiscard]] std::int64_t count() const { return num_allocations; }
};

inline void* allocate_or_null(std::size_t num_bytes, std::size_t alignment) noexcept {
  ++num_allocations;
  if (allocations_until_failure >= 0 && allocations_until_failure-- == 0) return nullptr;
  const std::size_t rounded = (num_bytes + alignment - 1) / alignment * alignment;
  return alignment <= alignof(std::max_align_t) ? std::malloc(num_bytes != 0 ? num_bytes : 1)
                                                : std::aligned_alloc(alignment, rounded != 0 ? rounded : alignment);
}
inline void* allocate_or_throw(std::size_t num_bytes, std::size_t alignment) {
  void* const memory = allocate_or_null(num_bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace pagedkv::testing

// NOLINTBEGIN(misc-definitions-in-headers)
void* operator new(std::size_t n) { return pagedkv::testing::allocate_or_throw(n, 1); }
void* operator new[](std::size_t n) { return pagedkv::testing::allocate_or_throw(n, 1); }
void* operator new(std::size_t n, std::align_val_t a) {
  return pagedkv::testing::allocate_or_throw(n, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t n, std::align_val_t a) {
  return pagedkv::testing::allocate_or_throw(n, static_cast<std::size_t>(a));
}
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return pagedkv::testing::allocate_or_null(n, 1); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept { return pagedkv::testing::allocate_or_null(n, 1); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { std::free(p); }
// NOLINTEND(misc-definitions-in-headers)
