// Keys of namespaces: salt and extra key, each framed by its length.
#include "prefix/namespaces.h"

#include <xxhash.h>

#include <algorithm>
#include <new>

#include "pagedkv/prefix_cache.h"

namespace pagedkv::prefix {

namespace {

// The length before the bytes, so that no two pairs of fields make the same key. Throws std::bad_alloc.
void append_number(std::string& key, std::uint64_t number) {
  for (int shift = 0; shift < 64; shift += 8) key.push_back(static_cast<char>(number >> shift & 0xFF));
}
void append_framed(std::string& key, std::string_view field) {
  append_number(key, field.size());
  key.append(field);
}

bool is_unused(const std::shared_ptr<Namespace>& name_space) noexcept {
  // Nobody but the table holds it, so nobody can publish into it either. To drop a second reference, as use_count()
  // alone does not, waits for what the last user wrote before dropping its own: the pages that it published.
  {
    const std::shared_ptr<Namespace> second = name_space;  // NOLINT(performance-unnecessary-copy-initialization)
    if (second.use_count() > 2) return false;
  }
  return name_space->num_pages.load(std::memory_order_acquire) == 0;
}

}  // namespace

Result<std::shared_ptr<Namespace>> Namespaces::acquire(std::string_view cache_salt, std::string_view extra_key,
                                                       std::uint64_t page_table) noexcept {
  if (cache_salt.size() > kMaxCacheKeyBytes || extra_key.size() > kMaxCacheKeyBytes) {
    return Error{Errc::kInvalidArgument, "cache_salt or extra_key is longer than 4096 bytes"};
  }
  try {
    std::string key;
    key.reserve(24 + cache_salt.size() + extra_key.size());
    append_number(key, page_table);
    append_framed(key, cache_salt);
    append_framed(key, extra_key);
    const std::scoped_lock guard(mutex_);
    const auto known = by_key_.find(key);
    if (known != by_key_.end()) return known->second;
    if (by_key_.size() >= forget_at_) forget_unused();
    auto name_space = std::make_shared<Namespace>();
    name_space->seed = XXH3_64bits(key.data(), key.size());
    name_space->id = ++num_made_;
    by_key_.emplace(std::move(key), name_space);
    return name_space;
  } catch (const std::bad_alloc&) {
    return Error{Errc::kOutOfMemory, "no memory for a namespace"};
  }
}

std::uint64_t Namespaces::count() noexcept {
  const std::scoped_lock guard(mutex_);
  return static_cast<std::uint64_t>(
      std::count_if(by_key_.begin(), by_key_.end(), [](const auto& item) { return !is_unused(item.second); }));
}

void Namespaces::forget_unused() noexcept {
  std::erase_if(by_key_, [](const auto& item) { return is_unused(item.second); });
  forget_at_ = std::max<std::size_t>(64, 2 * by_key_.size());  // amortised over as many acquisitions
}

}  // namespace pagedkv::prefix
