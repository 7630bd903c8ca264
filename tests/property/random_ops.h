// How many random operations the long runs make: PAGEDKV_RANDOM_OPS, or a number that takes about a second.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <random>

namespace pagedkv::testing {

inline std::uint64_t num_random_ops(std::uint64_t fallback) {
  const char* const text = std::getenv("PAGEDKV_RANDOM_OPS");  // NOLINT(concurrency-mt-unsafe)
  return text != nullptr ? std::strtoull(text, nullptr, 10) : fallback;
}

/// Seeded by PAGEDKV_RANDOM_SEED, or always the same.
inline std::mt19937_64 random_engine() {
  const char* const text = std::getenv("PAGEDKV_RANDOM_SEED");  // NOLINT(concurrency-mt-unsafe)
  return std::mt19937_64(text != nullptr ? std::strtoull(text, nullptr, 10) : 20240229);
}

}  // namespace pagedkv::testing
