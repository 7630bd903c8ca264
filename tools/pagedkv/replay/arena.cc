// Takes the arena's memory from a page pool, all pages at once.
#include "replay/arena.h"

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "tool.h"

namespace pagedkv::tool {
namespace {

constexpr std::uint64_t kOsPageBytes = 4096;  ///< The smallest there are: larger ones are touched more than once.
constexpr std::uint64_t kChunkBytes = 1 << 20;

}  // namespace

std::uint64_t resident_bytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  unsigned long long total = 0, resident = 0;
  const int fields = std::fscanf(file, "%llu %llu", &total, &resident);
  std::fclose(file);
  return fields == 2 ? resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)) : 0;
}

void touch_bytes(std::byte* begin, std::byte* end) {
  for (std::byte* at = begin; at < end; at += kOsPageBytes) *static_cast<volatile std::byte*>(at) = std::byte{1};
  if (begin < end) *static_cast<volatile std::byte*>(end - 1) = std::byte{1};
}

Arena::Arena(std::uint64_t capacity, std::uint64_t slot_bytes) : slot_bytes_(slot_bytes) {
  if (slot_bytes == 0) return;
  const std::uint64_t num_chunks = (capacity * slot_bytes + kChunkBytes - 1) / kChunkBytes;
  pool_.emplace(value_or_bad_input(
      PagePool::create({.page_bytes = kChunkBytes, .capacity_pages = num_chunks, .huge_pages = HugePages::kNever}),
      "cannot create the arena"));
  std::vector<PageId> ids(num_chunks);
  value_or_bad_input(pool_->allocate(ids), "cannot fill the arena");
}

void Arena::touch(std::uint64_t begin, std::uint64_t num_slots) {
  if (pool_) touch_bytes(pool_->base() + begin * slot_bytes_, pool_->base() + (begin + num_slots) * slot_bytes_);
}

void Arena::copy(std::uint64_t from, std::uint64_t to, std::uint64_t num_slots) {
  if (pool_) std::memcpy(pool_->base() + to * slot_bytes_, pool_->base() + from * slot_bytes_, num_slots * slot_bytes_);
}

}  // namespace pagedkv::tool
