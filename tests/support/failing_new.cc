// The replaced operator new and delete of a test program. In a file of its own, so that no call of them is inlined.
#include "support/failing_new.h"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

using pagedkv::testing::allocations_until_failure;
using pagedkv::testing::failures_last;
using pagedkv::testing::num_allocations;

void* allocate_or_null(std::size_t num_bytes, std::size_t alignment) noexcept {
  ++num_allocations;
  if (allocations_until_failure == 0 && failures_last) return nullptr;
  if (allocations_until_failure >= 0 && allocations_until_failure-- == 0) return nullptr;
  const std::size_t rounded = (num_bytes + alignment - 1) / alignment * alignment;
  return alignment <= alignof(std::max_align_t) ? std::malloc(num_bytes != 0 ? num_bytes : 1)
                                                : std::aligned_alloc(alignment, rounded != 0 ? rounded : alignment);
}
void* allocate_or_throw(std::size_t num_bytes, std::size_t alignment) {
  void* const memory = allocate_or_null(num_bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t n) { return allocate_or_throw(n, 1); }
void* operator new[](std::size_t n) { return allocate_or_throw(n, 1); }
void* operator new(std::size_t n, std::align_val_t a) { return allocate_or_throw(n, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t n, std::align_val_t a) { return allocate_or_throw(n, static_cast<std::size_t>(a)); }
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return allocate_or_null(n, 1); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept { return allocate_or_null(n, 1); }
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
