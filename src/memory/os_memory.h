// The whole surface of the operating system's memory calls, as one interface that tests can make fail.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pagedkv/result.h"

namespace pagedkv::memory {

/// Addresses and sizes are multiples of `os_page_bytes()`. Thread-safe.
class OsMemory {
 public:
  virtual ~OsMemory() = default;

  /// Reserves address space without memory behind it, aligned to `alignment` (a power of two).
  virtual Result<std::byte*> reserve(std::uint64_t num_bytes, std::uint64_t alignment) noexcept = 0;
  /// Gives the address space back, with all memory in it.
  virtual void unreserve(std::byte* begin, std::uint64_t num_bytes) noexcept = 0;
  /// Makes a part of the range readable and writable; it reads as zero.
  virtual Result<void> commit(std::byte* begin, std::uint64_t num_bytes) noexcept = 0;
  /// Gives the memory behind a committed part back. It stays usable and reads as zero again.
  virtual Result<void> decommit(std::byte* begin, std::uint64_t num_bytes) noexcept = 0;
  /// Asks for transparent huge pages; false if the system knows none.
  virtual bool advise_huge_pages(std::byte* begin, std::uint64_t num_bytes) noexcept = 0;

  [[nodiscard]] virtual std::uint64_t os_page_bytes() const noexcept = 0;
};

/// The operating system itself.
OsMemory& system_memory() noexcept;

}  // namespace pagedkv::memory
