// Mistakes of a caller, of which the cache must refuse each and change nothing.
#include <array>
#include <string>

#include "model/cache_machine.h"

namespace pagedkv::testing {

void CacheMachine::misuse(std::uint32_t which, std::uint32_t b, std::uint32_t c) {
  which % 2 == 0 ? misuse_cache(which / 2, b) : misuse_step(which / 2, b, c);
}

void CacheMachine::misuse_cache(std::uint32_t which, std::uint32_t b) {
  const auto is_invalid = [](Error error, const char* what) { require(error == Errc::kInvalidArgument, what); };
  const bool has_prefixes = on_.prefix != 0;
  switch (which % 9) {
    case 0: {
      const std::string salt(kMaxCacheKeyBytes + 1, 's');
      if (has_prefixes) is_invalid(cache_->open({}, {.cache_salt = salt}).error(), "a salt too long");
      if (has_prefixes) is_invalid(cache_->pin({}, {.extra_key = salt}).error(), "a key too long");
      break;
    }
    case 1: {
      const RetentionRange bad = b % 2 == 0 ? RetentionRange{.priority = kMaxRetentionPriority + 1}
                                            : RetentionRange{.begin_token = 5, .end_token = 5};
      if (has_prefixes) is_invalid(cache_->open({}, {.retention = {&bad, 1}}).error(), "a bad retention");
      break;
    }
    case 2:
      require(
          cache_->unpin(PinId{~std::uint64_t{0} - b}).error() == (has_prefixes ? Errc::kNotFound : Errc::kUnsupported),
          "no such pin");
      break;
    case 3:
      is_invalid(cache_->set_capacity(b % 2 == 0 ? 0 : on_.max_capacity + 1 + b).error(), "a bad capacity");
      break;
    case 4: is_invalid(cache_->view(on_.layers + b).error(), "no such layer"); break;
    case 5: is_invalid(cache_->page_table_of(on_.layers + b).error(), "no such layer"); break;
    case 6: {
      const std::array<PageId, 3> ids{PageId{static_cast<std::int32_t>(b % on_.max_capacity)},
                                      PageId{static_cast<std::int32_t>(b / 32 % on_.max_capacity)},
                                      PageId{static_cast<std::int32_t>(on_.max_capacity)}};
      is_invalid(pool_->retain(ids).error(), "a page to retain out of range");
      is_invalid(pool_->release(ids).error(), "a page to release out of range");
      break;
    }
    case 7: {
      const PageId page{static_cast<std::int32_t>(b % on_.max_capacity)};
      if (pool_->ref_count(page) > 0) break;
      is_invalid(pool_->retain({&page, 1}).error(), "a page to retain that nobody uses");
      is_invalid(pool_->release({&page, 1}).error(), "a page to release that nobody uses");
      break;
    }
    default: {
      PageIds ids(capacity_ - used_pages() + 1);
      require(pool_->allocate(ids).error() == Errc::kOutOfPages, "one page too many");
      break;
    }
  }
}

void CacheMachine::misuse_step(std::uint32_t which, std::uint32_t b, std::uint32_t c) {
  const auto refused = [this](std::initializer_list<StepItem> items, Errc code, const char* what) {
    const std::span<const StepItem> span(items.begin(), items.size());
    require(cache_->pages_needed(span).error() == code && cache_->begin_step(items).error() == code, what);
  };
  refused({}, Errc::kInvalidArgument, "a step of nothing");
  refused({{nullptr, 1, {}}}, Errc::kInvalidArgument, "a step of a null sequence");
  Sequence closed;
  refused({{&closed, 1, {}}}, Errc::kClosed, "a step of a closed sequence");
  ModelSequence* const s = pick(b);
  if (s != nullptr && !s->is_busy) {
    Sequence& sequence = s->sequence;
    const std::array<Token, 2> ids{7, 7};  // no prompt has this token
    switch (which % 6) {
      case 0: refused({{&sequence, 0, {}}}, Errc::kInvalidArgument, "no new tokens"); break;
      case 1: refused({{&sequence, 1, {}}, {&sequence, 1, {}}}, Errc::kInvalidArgument, "a sequence twice"); break;
      case 2: refused({{&sequence, 3, ids}}, Errc::kInvalidArgument, "ids of another number"); break;
      case 3:
        refused({{&sequence, 0x7fffffff, {}}, {&sequence, 1, {}}}, Errc::kInvalidArgument, "too many tokens");
        break;
      case 4:
        if (s->ids.size() > s->rows.size()) refused({{&sequence, 2, ids}}, Errc::kInvalidArgument, "other ids");
        break;
      default: {
        KvCache other = KvCache::create({.shape = cache_->options().shape, .capacity_pages = 1}).value();
        Sequence foreign = other.open().value();
        refused({{&sequence, 1, {}}, {&foreign, 1, {}}}, Errc::kInvalidArgument, "a foreign sequence");
      }
    }
  }
  if (steps_.empty()) return;
  Step& step = steps_[c % steps_.size()].step;
  std::vector<float> rows(step.num_rows() * kQHeads * kHeadDim + 1);
  std::vector<std::uint32_t> accepted(step.num_items(), 0);
  accepted[c % accepted.size()] = 6;  // items have five at most
  require(step.write(on_.layers, rows, rows).error() == Errc::kInvalidArgument, "no such layer to write");
  require(step.attend(on_.layers, rows, rows).error() == Errc::kInvalidArgument, "no such layer to attend");
  require(step.write(0, rows, rows).error() == Errc::kInvalidArgument, "rows of another number to write");
  require(step.attend(0, rows, rows).error() == Errc::kInvalidArgument, "rows of another number to attend");
  require(step.commit(accepted).error() == Errc::kInvalidArgument, "more accepted than there are");
  accepted.push_back(0);
  require(step.commit(accepted).error() == Errc::kInvalidArgument, "another number of items");
}

}  // namespace pagedkv::testing
