// The policies of replay by name, and the memories that they stand for.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "replay/attention_load.h"
#include "replay/cache_memory.h"
#include "replay/kv_memory.h"

namespace pagedkv::tool {

enum class PolicyKind { kPaged, kMaxLen, kOracle, kDoubling, kChained, kBuddy, kCells, kAllocator };

struct Policy {
  std::string name;  ///< As on the command line.
  PolicyKind kind = PolicyKind::kPaged;
  std::uint32_t page_size = 16;  ///< Of paged memory, and of all with attention.

  [[nodiscard]] std::string label() const;  ///< Name, and the page size if that matters.
};

/// What every policy must know.
struct MemoryOptions {
  std::uint64_t capacity_tokens = 0;
  std::uint64_t max_seq_len = 0;
  std::uint32_t max_seqs = 256;
  std::uint64_t slot_bytes = 0;  ///< Of real memory a slot when there is no attention; 0 = account only.
  bool attention = false;
  AttentionShape shape;
  bool prefix_cache = false;  ///< Of paged memory.
  Eviction eviction = Eviction::kLru;
};

/// The policies that a name stands for; "all" is every one that the options allow. Throws BadInput if there is none.
std::vector<Policy> parse_policies(const std::string& name, std::uint32_t page_size, bool attention);
/// All names but "all".
std::vector<std::string> policy_names();

/// Throws BadInput if the memory cannot be had: see what().
std::unique_ptr<KvMemory> create_memory(const Policy& policy, const MemoryOptions& options);

}  // namespace pagedkv::tool
