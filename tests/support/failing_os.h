// Memory calls of the system, of which the n-th of a thread fails, whoever makes it. Needs support/failing_os.cc.
#pragma once

#include <atomic>
#include <cstdint>

namespace pagedkv::testing {

inline thread_local std::int64_t os_calls_until_failure = -1;  // below 0: never
inline std::atomic<std::int64_t> mapped_os_bytes{0};           // by mmap, without what munmap took

}  // namespace pagedkv::testing
