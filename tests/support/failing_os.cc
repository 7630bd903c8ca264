// mmap, mprotect and madvise of a test program, in front of those of the C library. munmap is counted alone: it gives
// back, and cannot be refused a caller who made no mistake.
#include "support/failing_os.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace {

bool fails() {
  auto& left = pagedkv::testing::os_calls_until_failure;
  if (left < 0 || left-- != 0) return false;
  errno = ENOMEM;
  return true;
}

}  // namespace

extern "C" {

// NOLINTBEGIN(readability-inconsistent-declaration-parameter-name)
void* mmap(void* begin, size_t length, int protection, int flags, int file, off_t offset) noexcept {
  if (fails()) return MAP_FAILED;
  const long mapped = ::syscall(SYS_mmap, begin, length, protection, flags, file, offset);
  if (mapped == -1) return MAP_FAILED;
  pagedkv::testing::mapped_os_bytes += static_cast<std::int64_t>(length);
  return reinterpret_cast<void*>(mapped);
}
int munmap(void* begin, size_t length) noexcept {
  pagedkv::testing::mapped_os_bytes -= static_cast<std::int64_t>(length);
  return static_cast<int>(::syscall(SYS_munmap, begin, length));
}
int mprotect(void* begin, size_t length, int protection) noexcept {
  return fails() ? -1 : static_cast<int>(::syscall(SYS_mprotect, begin, length, protection));
}
int madvise(void* begin, size_t length, int advice) noexcept {
  return fails() ? -1 : static_cast<int>(::syscall(SYS_madvise, begin, length, advice));
}
// NOLINTEND(readability-inconsistent-declaration-parameter-name)

}  // extern "C"
