// How much of a range of addresses is in memory now.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace pagedkv::testing {

/// `begin` is the beginning of an OS page.
inline std::uint64_t resident_bytes(const void* begin, std::uint64_t num_bytes) {
  const auto os_page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> in_core((num_bytes + os_page - 1) / os_page);
  EXPECT_EQ(::mincore(const_cast<void*>(begin), num_bytes, in_core.data()), 0);
  return os_page * static_cast<std::uint64_t>(
                       std::count_if(in_core.begin(), in_core.end(), [](unsigned char c) { return (c & 1U) != 0; }));
}

}  // namespace pagedkv::testing
