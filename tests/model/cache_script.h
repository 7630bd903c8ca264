// A test of KvCache as data: the case that it runs on and the operations in order, and both as lines of text.
//
//   case page_size=2 capacity=7 max_capacity=9 ...
//   open 12 5 0
//   begin 3 9 1
//
// A line is an operation and its three numbers; any numbers are valid. Lines that begin with '#' are skipped.
#pragma once

#include <array>
#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "pagedkv/types.h"

namespace pagedkv::testing {

/// What a script runs on. Every value of its fields within the ranges of `random_case` makes a cache.
struct CacheCase {
  std::uint32_t page_size = 1;     ///< 1..5 tokens.
  std::uint32_t capacity = 4;      ///< Pages, 1..40.
  std::uint32_t max_capacity = 4;  ///< At least the capacity.
  std::uint32_t watermark = 0;     ///< At most the capacity.
  std::uint32_t layers = 1;        ///< 1..4.
  std::int32_t window = -1;        ///< Of the layers that slide.
  std::uint32_t sinks = 0;         ///< Tokens that they see beside it.
  std::uint32_t sliding = 0;       ///< 0: all layers alike, with `window`. Else bit l: layer l slides.
  std::uint32_t layers_per_page = 0;
  std::uint32_t dtype = 0;      ///< As DType.
  std::uint32_t target = 0;     ///< 0: the active one. Else the one of that number, from 1, if it may run.
  std::uint32_t variant = 0;    ///< Bit 0: soft cap, 1: sinks, 2: ALiBi, 3: a scale.
  std::uint32_t policy = 0;     ///< 0 LRU, 1 ARC, 2 S3-FIFO.
  std::uint32_t prefix = 1;     ///< 0: no prefix cache.
  std::uint32_t zeroing = 0;    ///< 1: pages are zeroed between tenants.
  std::uint32_t colliding = 0;  ///< 1: all prefixes have one hash.
};

enum class CacheOpKind : std::uint8_t {
  kOpen,      ///< a: length, b: tokens, c: tenant and retention
  kClose,     ///< a: which sequence
  kDrop,      ///< a: which sequence; in a step too
  kFork,      ///< a: which sequence
  kTruncate,  ///< a: which sequence, b: length
  kSlide,     ///< a: which sequence, b: window, c: sinks and page table
  kAppend,    ///< a: which sequence, b: tokens
  kBegin,     ///< a: mask of sequences, b: new tokens of each, c: token ids
  kWork,      ///< a: which step: writes and attends all its layers
  kFinish,    ///< a: which step, b: commit all, a part, roll back or drop
  kPin,       ///< a: length, b: tokens, c: tenant
  kUnpin,     ///< a: which
  kClear,     ///< the prefix cache
  kTrim,
  kCapacity,  ///< a: pages
  kTake,      ///< a: pages that somebody else takes from the pool
  kGive,      ///< gives them back
  kAsk,       ///< a, b: what a scheduler asks
  kMisuse,    ///< a: which mistake, b, c: its subject; it must be refused
};
inline constexpr std::uint32_t kNumCacheOps = 19;

struct CacheOp {
  CacheOpKind kind = CacheOpKind::kOpen;
  std::uint32_t a = 0, b = 0, c = 0;
};

struct CacheScript {
  CacheCase on;
  std::vector<CacheOp> ops;
};

const char* to_string(CacheOpKind kind) noexcept;
std::ostream& operator<<(std::ostream& out, const CacheCase& on);
std::ostream& operator<<(std::ostream& out, const CacheOp& op);
std::ostream& operator<<(std::ostream& out, const CacheScript& script);
/// Throws std::runtime_error if the text is no script.
CacheScript parse_script(std::istream& in);

/// How often each kind occurs, of the sum of all.
std::array<std::uint32_t, kNumCacheOps> op_weights() noexcept;
/// A case and `num_ops` operations that depend on `seed` alone.
CacheScript random_script(std::uint64_t seed, std::size_t num_ops);

/// Runs a script on a new cache; the message of the first difference, or nothing.
std::string run_script(const CacheScript& script);
/// The same failing script with as few operations and as small numbers as can be found in a bounded number of runs.
CacheScript shrink_script(CacheScript script);

}  // namespace pagedkv::testing
