// Namespaces of the prefix cache: tenants and whatever else keeps prefixes apart, compared byte for byte.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

#include "pagedkv/result.h"

namespace pagedkv::prefix {

/// The root of one tree of prefixes.
struct Namespace {
  std::uint64_t id = 0;                     ///< From 1; no other namespace of the cache ever has it.
  std::uint64_t seed = 0;                   ///< Hash of the key: where hashes of prefixes begin.
  std::int32_t children = -1;               ///< Root of the tree of first pages. Under the pool's lock.
  std::atomic<std::uint64_t> num_pages{0};  ///< Published pages. Written under the pool's lock.
};

/// Thread-safe. Namespaces that nobody uses and that hold no page are forgotten now and then.
class Namespaces {
 public:
  /// Errors: kInvalidArgument (a key that is too long), kOutOfMemory
  Result<std::shared_ptr<Namespace>> acquire(std::string_view cache_salt, std::string_view extra_key,
                                             std::uint64_t page_table) noexcept;
  /// Those in use or with pages.
  [[nodiscard]] std::uint64_t count() noexcept;

 private:
  void forget_unused() noexcept;

  std::mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<Namespace>> by_key_;
  std::uint64_t num_made_ = 0;
  std::size_t forget_at_ = 64;  // number of namespaces at which the unused are looked for
};

}  // namespace pagedkv::prefix
