// Maps names to memories.
#include "replay/policy.h"

#include <fmt/format.h>

#include <algorithm>

#include "replay/allocator_memory.h"
#include "replay/cell_memory.h"
#include "replay/chained_memory.h"
#include "replay/contiguous_attention.h"
#include "replay/contiguous_memory.h"
#include "replay/paged_memory.h"
#include "tool.h"

namespace pagedkv::tool {
namespace {

struct NamedKind {
  const char* name;
  PolicyKind kind;
  bool attention;  ///< Can hold real keys and values and attend to them.
};
constexpr NamedKind kPolicies[] = {
    {"paged", PolicyKind::kPaged, true},         {"max-len", PolicyKind::kMaxLen, true},
    {"doubling", PolicyKind::kDoubling, true},   {"oracle", PolicyKind::kOracle, false},
    {"chained", PolicyKind::kChained, false},    {"buddy", PolicyKind::kBuddy, false},
    {"cells", PolicyKind::kCells, false},        {"glibc", PolicyKind::kAllocator, false},
    {"jemalloc", PolicyKind::kAllocator, false}, {"mimalloc", PolicyKind::kAllocator, false},
    {"tbb", PolicyKind::kAllocator, false},      {"boost-pool", PolicyKind::kAllocator, false},
};
constexpr std::uint32_t kOtherPageSizes[] = {1, 8, 16, 32, 64, 128, 256};

Sizing sizing_of(PolicyKind kind) {
  if (kind == PolicyKind::kOracle) return Sizing::kOracle;
  if (kind == PolicyKind::kDoubling) return Sizing::kDoubling;
  return kind == PolicyKind::kBuddy ? Sizing::kBuddy : Sizing::kMaxLen;
}

std::unique_ptr<KvMemory> create_attention_memory(const Policy& policy, const MemoryOptions& options) {
  return std::make_unique<ContiguousAttentionMemory>(sizing_of(policy.kind), options.shape, options.capacity_tokens,
                                                     options.max_seq_len, policy.page_size, options.max_seqs);
}

}  // namespace

std::string Policy::label() const {
  return kind == PolicyKind::kPaged ? fmt::format("{}, page {}", name, page_size) : name;
}

std::vector<Policy> parse_policies(const std::string& name, std::uint32_t page_size, bool attention) {
  std::vector<Policy> policies;
  for (const NamedKind& named : kPolicies) {
    if ((name != "all" && name != named.name) || (attention && !named.attention)) continue;
    policies.push_back({named.name, named.kind, page_size});
    if (name != "all" || attention || named.kind != PolicyKind::kPaged) continue;
    for (const std::uint32_t other : kOtherPageSizes) {
      if (other != page_size) policies.push_back({named.name, named.kind, other});
    }
  }
  if (policies.empty()) {
    throw BadInput(fmt::format("policy {} is unknown, or cannot be combined with --attention", name));
  }
  return policies;
}

std::vector<std::string> policy_names() {
  std::vector<std::string> names;
  for (const NamedKind& named : kPolicies) names.emplace_back(named.name);
  return names;
}

std::unique_ptr<KvMemory> create_memory(const Policy& policy, const MemoryOptions& options) {
  if (policy.kind == PolicyKind::kPaged && (options.attention || options.prefix_cache)) {
    return std::make_unique<CacheMemory>(CacheMemoryOptions{.capacity_tokens = options.capacity_tokens,
                                                            .page_size = policy.page_size,
                                                            .max_seqs = options.max_seqs,
                                                            .attention = options.attention,
                                                            .shape = options.shape,
                                                            .prefix_cache = options.prefix_cache,
                                                            .eviction = options.eviction});
  }
  if (options.attention) return create_attention_memory(policy, options);
  switch (policy.kind) {
    case PolicyKind::kPaged:
      return std::make_unique<PagedMemory>(options.capacity_tokens, policy.page_size, options.max_seqs,
                                           options.slot_bytes);
    case PolicyKind::kMaxLen:
    case PolicyKind::kOracle:
    case PolicyKind::kDoubling:
    case PolicyKind::kBuddy:
      return std::make_unique<ContiguousMemory>(ContiguousOptions{.sizing = sizing_of(policy.kind),
                                                                  .capacity_tokens = options.capacity_tokens,
                                                                  .max_seq_len = options.max_seq_len,
                                                                  .max_seqs = options.max_seqs,
                                                                  .slot_bytes = options.slot_bytes});
    case PolicyKind::kChained:
      return std::make_unique<ChainedMemory>(options.capacity_tokens, options.max_seqs, options.slot_bytes);
    case PolicyKind::kCells:
      return std::make_unique<CellMemory>(options.capacity_tokens, options.max_seqs, options.slot_bytes);
    case PolicyKind::kAllocator: {
      const std::uint64_t slot_bytes = std::max<std::uint64_t>(options.slot_bytes, 64);
      return std::make_unique<AllocatorMemory>(load_allocator(policy.name, policy.page_size * slot_bytes),
                                               options.capacity_tokens, options.max_seq_len, options.max_seqs,
                                               slot_bytes);
    }
  }
  throw BadInput("unknown policy");
}

}  // namespace pagedkv::tool
