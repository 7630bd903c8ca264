// Drives a KvCache and the naive model side by side, and compares everything that can be seen after every operation.
//
// The model predicts every refusal, page count, reference count, cached prefix, row and output. The one thing that it
// is told is which page was evicted (by events); it checks that the page was a candidate.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "model/cache_model.h"
#include "model/cache_script.h"
#include "pagedkv/kv_cache.h"

namespace pagedkv::testing {

/// Lets the n-th allocation or call of the system fail.
class Faults {
 public:
  virtual ~Faults() = default;
  virtual void arm(std::int64_t fail_at) = 0;
  /// Whether anything failed since `arm`.
  virtual bool disarm() = 0;
};

/// Throws std::logic_error unless `condition` holds.
void require(bool condition, const char* what);

class CacheMachine {
 public:
  /// With `faults`, every call of the library that may fail is made to fail at every point at which it can.
  explicit CacheMachine(const CacheCase& on, Faults* faults = nullptr);

  /// Throws std::logic_error that says what differed.
  void run(const CacheOp& op);
  /// Ends everything; nothing may be left.
  void finish();
  [[nodiscard]] std::uint64_t num_faults() const { return num_faults_; }

 private:
  static constexpr std::uint32_t kQHeads = 4, kKvHeads = 2, kHeadDim = 4, kVHeadDim = 3;
  static constexpr std::size_t kMaxSequences = 6, kMaxSteps = 3, kMaxTokens = 30, kMaxPins = 3;
  static constexpr std::uint32_t kTenants = 3;
  enum class PageState : std::uint8_t { kFree, kPublished, kUsed };

  /// What `call` of the library gives. With faults, it is tried with a failure at the first point, then at the second,
  /// and so on; each time nothing may have changed.
  template <class Call>
  auto guarded(const Call& call) {
    for (std::int64_t fail_at = 0; faults_ != nullptr && cache_ != nullptr; ++fail_at) {
      faults_->arm(fail_at);
      auto result = call();
      const bool failed = faults_->disarm();
      if (!failed || (result.error().code != Errc::kOutOfMemory && result.error().code != Errc::kOsError)) {
        return result;
      }
      ++num_faults_;
      poll({}, {});
      check();
    }
    return call();
  }

  // cache_machine.cc: operations.
  void open(const CacheOp& op);
  void open_empty(std::uint32_t tenant);
  void close(std::uint32_t index);
  void drop(std::uint32_t index);
  void fork(std::uint32_t index);
  void truncate(std::uint32_t index, std::uint32_t length);
  void slide(std::uint32_t index, std::uint32_t window, std::uint32_t how);
  void append(std::uint32_t index, std::uint32_t count);
  void pin(const CacheOp& op);
  void unpin(std::uint32_t index);
  void set_capacity(std::uint32_t wanted);
  void take(std::uint32_t count);
  void give();
  void ask(std::uint32_t prompt, std::uint32_t more);
  void misuse(std::uint32_t which, std::uint32_t b, std::uint32_t c);
  void misuse_cache(std::uint32_t which, std::uint32_t b);
  void misuse_step(std::uint32_t which, std::uint32_t b, std::uint32_t c);

  // cache_steps.cc: steps.
  void begin(std::uint32_t mask, std::uint32_t counts, std::uint32_t how);
  ModelStepItem reserve_item(const std::shared_ptr<ModelSequence>& sequence, std::uint32_t num_new,
                             std::span<const Token> ids);
  void work(std::uint32_t index);
  void attend(ModelStep& step, std::uint32_t layer);
  void write_rows(Sequence& sequence, const ModelSequence& model, std::size_t first_token);
  void end_step(std::uint32_t index, std::uint32_t how);
  void end_item(const ModelStepItem& item, std::uint32_t accepted);
  [[nodiscard]] bool sees_released_page(const ModelStep& step) const;

  // cache_model.cc: what the model predicts.
  [[nodiscard]] std::vector<std::uint32_t> references() const;
  [[nodiscard]] std::uint64_t pages_to_take(const ModelSequence& sequence, std::uint64_t num_new) const;
  [[nodiscard]] std::uint64_t used_pages() const;
  [[nodiscard]] bool may_truncate(const ModelSequence& sequence, std::uint64_t length) const;
  /// Entries of each page table up to the longest cached prefix; null where no token to come sees them.
  [[nodiscard]] std::vector<PageIds> published_prefix(std::uint32_t tenant, std::span<const Token> tokens,
                                                      bool& is_shortened) const;
  [[nodiscard]] bool sees(std::uint32_t table, std::size_t num_tokens, std::size_t entry) const;
  [[nodiscard]] std::size_t partial_tokens(std::uint32_t tenant, std::span<const Token> tokens, std::size_t num_pages,
                                           bool& is_certain) const;
  std::uint64_t slide_table(ModelSequence& sequence, std::uint32_t table, std::size_t num_tokens, std::uint64_t window,
                            std::uint64_t sinks) const;
  void slide_windows(ModelSequence& sequence, std::size_t num_tokens) const;
  void poll(std::span<const ModelStepItem> published, std::span<const std::uint32_t> accepted);
  void on_stored(const ModelEvent& event, std::span<const ModelStepItem> published,
                 std::span<const std::uint32_t> accepted);

  // cache_checks.cc: comparisons.
  void check() const;
  void check_pages() const;
  void check_prefixes() const;
  void check_stats() const;
  void check_sequence(const ModelSequence& sequence) const;
  void check_rows(PageId page, std::uint32_t table, std::span<const Row> rows) const;
  void compare_attention(const ModelStep& step, std::uint32_t layer, const std::vector<float>& q,
                         const std::vector<float>& out, const std::vector<float>& lse) const;
  void check_zeroed(PageId page, std::uint32_t table, std::uint32_t tenant, std::size_t num_held);
  void poison_fresh(const ModelSequence& sequence, std::uint32_t table, std::size_t entry, std::size_t num_held);
  void poison_freed();
  [[nodiscard]] std::byte* row_at(PageId page, std::uint32_t layer, RowPart part, std::uint32_t head,
                                  std::size_t token) const;

  [[nodiscard]] ModelSequence* pick(std::uint32_t index) const;
  [[nodiscard]] std::vector<Token> prompt(const CacheOp& op) const;
  [[nodiscard]] OpenOptions keys(std::uint32_t tenant) const;
  [[nodiscard]] std::uint32_t tables() const { return static_cast<std::uint32_t>(windows_.size()); }
  [[nodiscard]] std::size_t pages_of(std::size_t num_tokens) const {
    return (num_tokens + on_.page_size - 1) / on_.page_size;
  }

  const CacheCase on_;
  Faults* const faults_;
  std::uint64_t num_faults_ = 0;
  std::unique_ptr<KvCache> cache_;
  PagePool* pool_ = nullptr;  // of the cache
  AttentionVariant variant_;  // without the window
  double tolerance_ = 0;
  std::uint32_t chain_ = 0;              // the table of the widest window: the others' pages are found beside its pages
  std::vector<std::int32_t> windows_;    // [page tables]
  std::vector<std::uint32_t> table_of_;  // [layers]

  std::vector<std::shared_ptr<ModelSequence>> sequences_;
  std::vector<ModelStep> steps_;
  std::vector<ModelPin> pins_;
  PageIds taken_;
  ModelPrefixes prefixes_;
  std::map<PrefixKey, std::uint64_t> hashes_;
  std::vector<std::vector<Token>> prompts_;  // seen, the latest last
  std::vector<PageState> states_;            // [max_capacity] after the last operation
  std::vector<std::uint32_t> owners_;        // [max_capacity] tenant of the last sequence that got the page
  std::uint64_t capacity_ = 0, next_event_ = 0, next_nonce_ = 0;
  bool was_cleared_ = false, was_appended_ = false;
  bool slides_ = false;  // pages in the middle of prefixes may have been released
  CacheStats counts_;    // the counters that the model keeps
};

}  // namespace pagedkv::testing
