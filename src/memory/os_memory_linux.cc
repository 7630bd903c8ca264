// The memory calls of Linux: mmap, mprotect, madvise.
#include <sys/mman.h>
#include <unistd.h>

#include <limits>

#include "core/align.h"
#include "memory/os_memory.h"

namespace pagedkv::memory {
namespace {

class LinuxMemory final : public OsMemory {
 public:
  Result<std::byte*> reserve(std::uint64_t num_bytes, std::uint64_t alignment) noexcept override {
    std::uint64_t padded = 0;
    if (!checked_add(num_bytes, alignment, padded) || padded > std::numeric_limits<std::size_t>::max()) {
      return Error{Errc::kInvalidArgument, "the address range overflows"};
    }
    // Readable from the start, as the zero page: what is read by mistake costs neither memory nor the process.
    void* mapped = ::mmap(nullptr, padded, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return Error{Errc::kOsError, "address space could not be reserved (mmap)"};

    // mmap aligns to OS pages only: cut what lies before and behind the aligned range.
    auto* const begin = static_cast<std::byte*>(mapped);
    const auto address = reinterpret_cast<std::uintptr_t>(mapped);
    const std::uint64_t head = round_up(address, alignment) - address;
    const std::uint64_t tail = padded - head - num_bytes;
    if (head > 0) ::munmap(begin, head);
    if (tail > 0) ::munmap(begin + head + num_bytes, tail);
    return begin + head;
  }

  void unreserve(std::byte* begin, std::uint64_t num_bytes) noexcept override { ::munmap(begin, num_bytes); }

  Result<void> commit(std::byte* begin, std::uint64_t num_bytes) noexcept override {
    if (::mprotect(begin, num_bytes, PROT_READ | PROT_WRITE) != 0) {
      return Error{Errc::kOsError, "memory could not be committed (mprotect)"};
    }
    return {};
  }

  Result<void> decommit(std::byte* begin, std::uint64_t num_bytes) noexcept override {
    if (::madvise(begin, num_bytes, MADV_DONTNEED) != 0) {
      return Error{Errc::kOsError, "memory could not be given back (madvise)"};
    }
    return {};
  }

  bool advise_huge_pages(std::byte* begin, std::uint64_t num_bytes) noexcept override {
    return ::madvise(begin, num_bytes, MADV_HUGEPAGE) == 0;
  }

  [[nodiscard]] std::uint64_t os_page_bytes() const noexcept override { return os_page_bytes_; }

 private:
  std::uint64_t os_page_bytes_ = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
};

}  // namespace

OsMemory& system_memory() noexcept {
  static LinuxMemory memory;
  return memory;
}

}  // namespace pagedkv::memory
