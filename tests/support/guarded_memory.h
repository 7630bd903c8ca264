// Arrays between two protected OS pages: a kernel that reads or writes past an end dies where it does so.
//
// Address sanitizers check what compilers emit; the loads of tile registers are not among it. The hardware checks all.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace pagedkv::testing {

/// Which end of an array lies against a protected page. At the other end are up to 4095 bytes of nobody's, all 0xFF:
/// NaN in every format.
enum class GuardedEdge : std::uint8_t { kEnd, kBegin };

/// For arrays that are made from now on.
inline GuardedEdge& guarded_edge() {
  static GuardedEdge edge = GuardedEdge::kEnd;
  return edge;
}

/// Sets the edge while it lives.
class ScopedEdge {
 public:
  explicit ScopedEdge(GuardedEdge edge) : before_(guarded_edge()) { guarded_edge() = edge; }
  ScopedEdge(const ScopedEdge&) = delete;
  ScopedEdge& operator=(const ScopedEdge&) = delete;
  ~ScopedEdge() { guarded_edge() = before_; }

 private:
  GuardedEdge before_;
};

template <class T>
struct GuardedAllocator {
  using value_type = T;

  GuardedAllocator() = default;
  template <class U>
  GuardedAllocator(const GuardedAllocator<U>&) noexcept {}  // NOLINT(*-explicit-*)

  T* allocate(std::size_t count) {
    const std::size_t page = page_bytes(), inner = inner_bytes(count);
    void* const begin = mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (begin == MAP_FAILED) throw std::bad_alloc();
    auto* const usable = static_cast<std::byte*>(begin) + page;
    if (mprotect(usable, inner, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    const std::size_t slack = inner - count * sizeof(T);
    const bool at_end = guarded_edge() == GuardedEdge::kEnd;
    std::byte* const filler = at_end ? usable : usable + count * sizeof(T);
    for (std::size_t i = 0; i < slack; ++i) filler[i] = std::byte{0xFF};
    return reinterpret_cast<T*>(at_end ? usable + slack : usable);
  }
  void deallocate(T* array, std::size_t count) noexcept {
    const std::size_t page = page_bytes();
    const auto address = reinterpret_cast<std::uintptr_t>(array);
    munmap(reinterpret_cast<void*>(address / page * page - page), inner_bytes(count) + 2 * page);
  }
  friend bool operator==(const GuardedAllocator&, const GuardedAllocator&) noexcept { return true; }

 private:
  static std::size_t page_bytes() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }
  static std::size_t inner_bytes(std::size_t count) {
    const std::size_t page = page_bytes();
    return (count * sizeof(T) + page - 1) / page * page;
  }
};

/// A vector without spare capacity, if it is made in one go.
template <class T>
using GuardedVector = std::vector<T, GuardedAllocator<T>>;

}  // namespace pagedkv::testing
