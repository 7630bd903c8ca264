// Memory calls of the operating system, of which the n-th fails.
#pragma once

#include <atomic>
#include <cstdint>

#include "memory/os_memory.h"

namespace pagedkv::testing {

/// Forwards to the system; call number `fail_at` (from 0, over all kinds) fails without doing anything.
class FaultMemory final : public memory::OsMemory {
 public:
  static constexpr std::int64_t kNever = -1;

  void fail_call(std::int64_t fail_at) {
    calls_ = 0;
    fail_at_ = fail_at;
  }
  [[nodiscard]] std::int64_t calls() const { return calls_; }
  [[nodiscard]] std::int64_t reserved_ranges() const { return reserved_ranges_; }

  Result<std::byte*> reserve(std::uint64_t num_bytes, std::uint64_t alignment) noexcept override {
    if (fails()) return Error{Errc::kOsError, "injected: reserve"};
    ++reserved_ranges_;
    return memory::system_memory().reserve(num_bytes, alignment);
  }
  void unreserve(std::byte* begin, std::uint64_t num_bytes) noexcept override {
    --reserved_ranges_;
    memory::system_memory().unreserve(begin, num_bytes);
  }
  Result<void> commit(std::byte* begin, std::uint64_t num_bytes) noexcept override {
    if (fails()) return Error{Errc::kOsError, "injected: commit"};
    return memory::system_memory().commit(begin, num_bytes);
  }
  Result<void> decommit(std::byte* begin, std::uint64_t num_bytes) noexcept override {
    if (fails()) return Error{Errc::kOsError, "injected: decommit"};
    return memory::system_memory().decommit(begin, num_bytes);
  }
  bool advise_huge_pages(std::byte* begin, std::uint64_t num_bytes) noexcept override {
    return !fails() && memory::system_memory().advise_huge_pages(begin, num_bytes);
  }
  [[nodiscard]] std::uint64_t os_page_bytes() const noexcept override {
    return memory::system_memory().os_page_bytes();
  }

 private:
  bool fails() noexcept { return calls_++ == fail_at_; }

  std::atomic<std::int64_t> calls_{0};
  std::atomic<std::int64_t> fail_at_{kNever};
  std::atomic<std::int64_t> reserved_ranges_{0};
};

}  // namespace pagedkv::testing
