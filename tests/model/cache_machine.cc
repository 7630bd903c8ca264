// The operations of the machine, but for steps.
#include "model/cache_machine.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "kernels/tolerances.h"
#include "pagedkv/cpu.h"

namespace pagedkv::testing {

namespace {

std::uint64_t same_hash(const Token*, std::size_t, std::uint64_t) noexcept { return 7; }
// Operations are a millisecond apart, whatever the machine does.
thread_local std::uint64_t now_ms = 0;
std::uint64_t model_clock() noexcept { return now_ms; }

std::shared_ptr<EvictionPolicy> policy_of(std::uint32_t number) {
  if (number == 1) return make_arc_policy().value();
  if (number == 2) return make_s3fifo_policy().value();
  return nullptr;
}

std::string_view target_of(std::uint32_t number) {
  return number > 0 && number <= targets().size() && targets()[number - 1].available ? targets()[number - 1].name : "";
}

constexpr std::array<float, 4> kSinks{0.5F, -1.0F, 0.0F, 2.0F}, kSlopes{0.25F, 0.125F, 0.5F, 1.0F};

AttentionVariant variant_of(std::uint32_t bits) {
  AttentionVariant variant;
  if ((bits & 1) != 0) variant.logits_soft_cap = 3;
  if ((bits & 2) != 0) variant.sinks = kSinks;
  if ((bits & 4) != 0) variant.alibi_slopes = kSlopes;
  if ((bits & 8) != 0) variant.sm_scale = 0.75F;
  return variant;
}

std::unique_ptr<KvCache> make_cache(const CacheCase& on, const ModelShape& shape) {
  std::vector<std::uint32_t> full, sliding;
  for (std::uint32_t l = 0; l < on.layers; ++l) ((on.sliding >> l & 1) != 0 ? sliding : full).push_back(l);
  std::vector<KvLayerGroup> groups;
  if (!full.empty()) groups.push_back({full, -1});
  if (!sliding.empty()) groups.push_back({sliding, on.window, on.sinks});
  KvCacheOptions options{.shape = shape,
                         .page_size = on.page_size,
                         .capacity_pages = on.capacity,
                         .max_capacity_pages = on.max_capacity,
                         .watermark_pages = on.watermark,
                         .zero_pages_between_tenants = on.zeroing != 0,
                         .prefix_cache = on.prefix != 0,
                         .attention = variant_of(on.variant),
                         .target = target_of(on.target)};
  if (on.sliding == 0) options.attention.window_left = on.window;
  if (on.sliding == 0) options.attention.sink_tokens = on.sinks;
  if (on.sliding != 0) options.layer_groups = groups;
  options.layers_per_page = on.layers_per_page;
  options.prefix.policy = policy_of(on.policy);
  options.prefix.event_capacity = 4096;
  options.prefix.now_ms = &model_clock;
  if (on.colliding != 0) options.prefix.hash = &same_hash;
  Result<KvCache> made = KvCache::create(options);
  require(made.has_value(), made.error().what);
  return std::make_unique<KvCache>(std::move(*made));
}

}  // namespace

void require(bool condition, const char* what) {
  if (!condition) throw std::logic_error(what);
}

CacheMachine::CacheMachine(const CacheCase& on, Faults* faults)
    : on_(on),
      faults_(faults),
      cache_(make_cache(on, {.num_layers = on.layers,
                             .num_q_heads = kQHeads,
                             .num_kv_heads = kKvHeads,
                             .head_dim = kHeadDim,
                             .v_head_dim = kVHeadDim,
                             .dtype = static_cast<DType>(on.dtype)})),
      pool_(&cache_->pool()),
      variant_(variant_of(on.variant)),
      states_(pool_->max_capacity_pages(), PageState::kFree),
      owners_(states_.size(), kTenants),
      capacity_(on.capacity) {
  now_ms = 0;
  for (std::uint32_t l = 0; l < on_.layers; ++l) {
    const auto table = static_cast<std::uint32_t>(cache_->page_table_of(l).value());
    table_of_.push_back(table);
    if (windows_.size() <= table) windows_.resize(table + 1, -1);
    windows_[table] = on_.sliding == 0 || (on_.sliding >> l & 1) != 0 ? on_.window : -1;
    slides_ = slides_ || windows_[table] >= 0;
  }
  for (std::uint32_t t = 0; t < tables(); ++t) {  // the widest window, -1 before all
    if (static_cast<std::uint32_t>(windows_[t]) > static_cast<std::uint32_t>(windows_[chain_])) chain_ = t;
  }
  tolerance_ = multiplies_bf16(cache_->options().target) && on_.dtype != 0 ? 0.05 : 3e-5;  // its weights are bf16
}

void CacheMachine::run(const CacheOp& op) {
  ++now_ms;
  switch (op.kind) {
    case CacheOpKind::kOpen: open(op); break;
    case CacheOpKind::kClose: close(op.a); break;
    case CacheOpKind::kDrop: drop(op.a); break;
    case CacheOpKind::kFork: fork(op.a); break;
    case CacheOpKind::kTruncate: truncate(op.a, op.b); break;
    case CacheOpKind::kSlide: slide(op.a, op.b, op.c); break;
    case CacheOpKind::kAppend: append(op.a, op.b); break;
    case CacheOpKind::kBegin: begin(op.a, op.b, op.c); break;
    case CacheOpKind::kWork: work(op.a); break;
    case CacheOpKind::kFinish: end_step(op.a, op.b); break;
    case CacheOpKind::kPin: pin(op); break;
    case CacheOpKind::kUnpin: unpin(op.a); break;
    case CacheOpKind::kClear: cache_->clear_prefix_cache(); break;
    case CacheOpKind::kTrim: require(guarded([this] { return cache_->trim(); }).has_value(), "trim"); break;
    case CacheOpKind::kCapacity: set_capacity(op.a); break;
    case CacheOpKind::kTake: take(op.a); break;
    case CacheOpKind::kGive: give(); break;
    case CacheOpKind::kAsk: ask(op.a, op.b); break;
    case CacheOpKind::kMisuse: misuse(op.a, op.b, op.c); break;
  }
  poll({}, {});
  check();
  if (op.kind != CacheOpKind::kTrim && op.kind != CacheOpKind::kCapacity) poison_freed();
  const std::vector<std::uint32_t> references = this->references();
  for (std::size_t i = 0; i < states_.size(); ++i) {
    const PageId page{static_cast<std::int32_t>(i)};
    states_[i] = references[i] > 0 ? PageState::kUsed : prefixes_.has(page) ? PageState::kPublished : PageState::kFree;
  }
}

void CacheMachine::finish() {
  if (on_.page_size % 2 == 0) {  // steps and sequences outlive the cache
    cache_.reset();
    for (std::uint32_t i = 0; i < steps_.size(); ++i) work(i);
    for (ModelStep& step : steps_) require(step.step.commit().has_value(), "commit behind the end of the cache");
    steps_.clear();
    sequences_.clear();
    return;
  }
  while (!steps_.empty()) run({CacheOpKind::kFinish, 0, 2, 0});
  while (!pins_.empty()) run({CacheOpKind::kUnpin, 0, 0, 0});
  run({CacheOpKind::kGive, 0, 0, 0});
  while (!sequences_.empty()) run({CacheOpKind::kClose, 0, 0, 0});
  require(cache_->stats().pool.used_pages == 0, "a page leaked");
  run({CacheOpKind::kClear, 0, 0, 0});
  require(cache_->stats().pool.free_pages == capacity_, "a published page leaked");
}

ModelSequence* CacheMachine::pick(std::uint32_t index) const {
  return sequences_.empty() ? nullptr : sequences_[index % sequences_.size()].get();
}

OpenOptions CacheMachine::keys(std::uint32_t tenant) const {
  return {.cache_salt = tenant == 0 ? "" : "salt", .extra_key = tenant == 2 ? "adapter" : ""};
}

// The beginning of a prompt that was seen, and some tokens more; of few different ones, so that prefixes meet.
std::vector<Token> CacheMachine::prompt(const CacheOp& op) const {
  std::vector<Token> tokens;
  if (!prompts_.empty()) tokens = prompts_[op.b % prompts_.size()];
  tokens.resize(std::min<std::size_t>(tokens.size(), op.b / 8 % kMaxTokens));
  std::uint64_t bits = mix(op.b + 17);
  for (std::uint32_t i = 0; i <= op.a % 12 && tokens.size() < kMaxTokens - 2; ++i, bits >>= 2) {
    tokens.push_back(static_cast<Token>(bits % 4 == 3 ? 0 : bits % 4));
  }
  return tokens;
}

// Sequences
// ------------------------------------------------------------------------------------------------------------

void CacheMachine::open(const CacheOp& op) {
  if (sequences_.size() >= kMaxSequences) return;
  const std::vector<Token> tokens = op.a % 16 == 15 ? std::vector<Token>{} : prompt(op);
  const std::uint32_t tenant = op.c % kTenants;
  const std::span<const Token> wanted = std::span(tokens).first(tokens.empty() ? 0 : tokens.size() - 1);
  // What the model finds: the prefix that every page table has, and rows of a page behind it if no table shortened it.
  bool is_shortened = false, is_certain = true;
  std::vector<PageIds> found = published_prefix(tenant, wanted, is_shortened);
  const std::size_t num_found = found[0].size();
  const std::size_t partial = is_shortened ? 0 : partial_tokens(tenant, wanted, num_found, is_certain);
  std::vector<std::uint32_t> references = this->references();
  std::uint64_t used = used_pages();
  for (const PageIds& pages : found) {
    for (const PageId page : pages) {
      if (page != kNullPage) used += references[static_cast<std::size_t>(to_index(page))]++ == 0 ? 1U : 0U;
    }
  }
  const bool fits_surely = used + 2 * tables() <= capacity_, fits_maybe = used + tables() <= capacity_;

  OpenOptions options = keys(tenant);
  const RetentionRange retention{
      .begin_token = op.c % 7, .end_token = op.c % 7 + 9, .priority = op.c / 3 % 101, .duration_ms = op.c % 4};
  if (op.c % 5 == 0) options.retention = {&retention, 1};
  Result<Sequence> opened = guarded([&] { return cache_->open(tokens, options); });
  require(opened.has_value(), "open");
  auto made = std::make_shared<ModelSequence>();
  made->sequence = std::move(*opened);
  made->tenant = tenant;
  made->ids = tokens;
  const std::uint64_t held = made->sequence.num_tokens();
  const std::uint64_t full = num_found * on_.page_size;
  require(held == full || (held == full + partial && fits_maybe) || !is_certain, "open finds what is published");
  require(!fits_surely || held == full + partial || !is_certain, "open copies a part of a page");
  require(made->sequence.cached_tokens() == held, "cached tokens are those found");
  for (std::size_t i = 0; i < held; ++i) {
    made->rows.push_back(next_row(made->last_row(), static_cast<std::uint64_t>(tokens[i])));
  }
  made->slid_to.resize(tables());
  made->visited.resize(tables());
  made->replaced.resize(tables(), kNullPage);
  for (std::uint32_t t = 0; t < tables(); ++t) {
    if (held > full) {
      const std::span<const PageId> pages = made->sequence.pages(t);
      require(pages.size() == num_found + 1 && references[static_cast<std::size_t>(to_index(pages.back()))]++ == 0,
              "the copy of a part is a fresh page");
      found[t].push_back(pages.back());
      made->tables.push_back(found[t]);
      poison_fresh(*made, t, num_found, held - full);
    } else {
      made->tables.push_back(found[t]);
    }
  }
  slide_windows(*made, made->rows.size());
  if (on_.prefix != 0 && !tokens.empty()) {
    ++counts_.prefix.lookups;
    counts_.prefix.lookup_tokens += wanted.size();
    counts_.prefix.hit_tokens += held;
  }
  sequences_.push_back(std::move(made));
  if (tokens.empty()) return;
  prompts_.push_back(tokens);
  if (prompts_.size() > 6) prompts_.erase(prompts_.begin());
}

void CacheMachine::close(std::uint32_t index) {
  ModelSequence* const s = pick(index);
  if (s == nullptr) return;
  const Result<void> closed = s->sequence.close();
  require(s->is_busy ? closed.error() == Errc::kBusy : closed.has_value(), "close");
  if (s->is_busy) return;
  require(!s->sequence.is_open() && s->sequence.close().has_value(), "close twice");
  sequences_.erase(sequences_.begin() + static_cast<std::ptrdiff_t>(index % sequences_.size()));
}

void CacheMachine::drop(std::uint32_t index) {
  ModelSequence* const s = pick(index);
  if (s == nullptr) return;
  s->sequence = Sequence();
  s->is_dropped = true;
  sequences_.erase(sequences_.begin() + static_cast<std::ptrdiff_t>(index % sequences_.size()));
}

void CacheMachine::fork(std::uint32_t index) {
  ModelSequence* const s = pick(index);
  if (s == nullptr || sequences_.size() >= kMaxSequences) return;
  Result<Sequence> forked = guarded([&] { return s->sequence.fork(); });
  require(s->is_busy ? forked.error() == Errc::kBusy : forked.has_value(), "fork");
  if (!forked) return;
  auto made = std::make_shared<ModelSequence>();
  made->sequence = std::move(*forked);
  made->tenant = s->tenant;
  made->ids = s->ids;
  made->rows = s->rows;
  made->tables = s->tables;
  made->slid_to = s->slid_to;
  made->visited = s->visited;
  made->replaced = s->replaced;
  sequences_.push_back(std::move(made));
}

void CacheMachine::truncate(std::uint32_t index, std::uint32_t amount) {
  ModelSequence* const s = pick(index);
  if (s == nullptr) return;
  const std::size_t length = amount % (s->rows.size() + 2);  // one too many, sometimes
  const Result<void> truncated = s->sequence.truncate(length);
  if (s->is_busy) return require(truncated.error() == Errc::kBusy, "truncate in a step");
  if (!may_truncate(*s, length)) return require(truncated.error() == Errc::kInvalidArgument, "truncate is refused");
  require(truncated.has_value(), "truncate");
  s->rows.resize(length);
  s->ids.resize(std::min(s->ids.size(), length));
  for (std::uint32_t t = 0; t < tables(); ++t) {
    s->tables[t].resize(pages_of(length));
    s->visited[t] = std::min(s->visited[t], pages_of(length));
  }
}

void CacheMachine::slide(std::uint32_t index, std::uint32_t window, std::uint32_t how) {
  ModelSequence* const s = pick(index);
  if (s == nullptr) return;
  const std::uint32_t table = how % (tables() + 1);
  window %= static_cast<std::uint32_t>(s->rows.size() + 1);
  const std::uint64_t sinks = how / 8 % 5;
  const Result<std::uint64_t> slid = s->sequence.slide(window, sinks, table);
  if (s->is_busy) return require(slid.error() == Errc::kBusy, "slide in a step");
  if (table == tables() || window >= s->rows.size()) {
    return require(slid.error() == Errc::kInvalidArgument, "slide is refused");
  }
  slides_ = true;
  s->slid_to[table] = window;
  s->visited[table] = 0;
  const std::uint64_t released = slide_table(*s, table, s->rows.size(), window, sinks);
  require(slid.has_value() && *slid == released, "slide");
}

// Tokens of an engine with kernels of its own: it writes where the page table says.
void CacheMachine::append(std::uint32_t index, std::uint32_t count) {
  ModelSequence* const s = pick(index);
  if (s == nullptr) return;
  count = 1 + count % 6;
  if (s->rows.size() + count > kMaxTokens) return;
  const std::uint64_t needed = pages_to_take(*s, count);
  const bool fits = used_pages() + needed <= capacity_;
  if (!s->is_busy) require(s->sequence.pages_needed(count) == needed, "pages_needed of a sequence");
  const Result<void> appended = guarded([&] { return s->sequence.append(count); });
  if (s->is_busy) return require(appended.error() == Errc::kBusy, "append in a step");
  if (!fits) return require(appended.error() == Errc::kOutOfPages, "append without pages");
  require(appended.has_value(), "append");
  // A copy is not made if its page could be found by others only until an eviction for this call.
  const std::uint64_t num_copies = cache_->stats().copied_pages - counts_.copied_pages;
  require(num_copies <= needed - tables() * (pages_of(s->rows.size() + count) - pages_of(s->rows.size())), "copies");
  counts_.copied_pages += num_copies;
  const std::size_t first = s->rows.size();
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::size_t at = s->rows.size();
    s->rows.push_back(next_row(s->last_row(), at < s->ids.size() ? static_cast<std::uint64_t>(s->ids[at])
                                                                 : (std::uint64_t{1} << 40) + next_nonce_++));
  }
  for (std::uint32_t t = 0; t < tables(); ++t) {
    const std::span<const PageId> pages = s->sequence.pages(t);
    require(pages.size() == pages_of(s->rows.size()), "append adds entries");
    s->tables[t].resize(first / on_.page_size);
    for (std::size_t i = s->tables[t].size(); i < pages.size(); ++i) {
      require(pages[i] != kNullPage, "append has a place for every token");
      s->tables[t].push_back(pages[i]);
      owners_[static_cast<std::size_t>(to_index(pages[i]))] = s->tenant;
    }
  }
  slide_windows(*s, first);  // what the new rows see stays
  was_appended_ = true;
  write_rows(s->sequence, *s, first);
}

// The prefix cache, and the pool
// ---------------------------------------------------------------------------------------

void CacheMachine::pin(const CacheOp& op) {
  if (pins_.size() >= kMaxPins) return;
  const std::vector<Token> tokens = prompt(op);
  const std::uint32_t tenant = op.c % kTenants;
  ModelPin made;
  bool is_shortened = false;
  for (const PageIds& pages : published_prefix(tenant, tokens, is_shortened)) {
    std::copy_if(pages.begin(), pages.end(), std::back_inserter(made.pages),
                 [](PageId page) { return page != kNullPage; });
  }
  const Result<PinId> pinned = guarded([&] { return cache_->pin(tokens, keys(tenant)); });
  if (on_.prefix == 0) return require(pinned.error() == Errc::kUnsupported, "pin without a prefix cache");
  if (made.pages.empty()) return require(pinned.error() == Errc::kNotFound, "pin of what is not there");
  require(pinned.has_value(), "pin");
  made.id = *pinned;
  pins_.push_back(std::move(made));
}

void CacheMachine::unpin(std::uint32_t index) {
  if (pins_.empty()) return;
  const auto at = pins_.begin() + static_cast<std::ptrdiff_t>(index % pins_.size());
  require(cache_->unpin(at->id).has_value(), "unpin");
  require(cache_->unpin(at->id).error() == Errc::kNotFound, "unpin twice");
  pins_.erase(at);
}

void CacheMachine::set_capacity(std::uint32_t wanted) {
  wanted %= on_.max_capacity + 2;
  const bool is_right = wanted > 0 && wanted <= on_.max_capacity && wanted >= on_.watermark && wanted >= used_pages();
  const Result<void> done = guarded([&] {
    Result<void> set = cache_->set_capacity(wanted);
    if (set.error() == Errc::kOsError) capacity_ = wanted;  // it is set, but memory could not be given back
    return set;
  });
  require(is_right ? done.has_value() : done.error() == Errc::kInvalidArgument, "set_capacity");
  if (is_right) capacity_ = wanted;
}

void CacheMachine::take(std::uint32_t count) {
  PageIds pages(1 + count % 6, kNullPage);
  const bool fits = used_pages() + pages.size() <= capacity_;
  if (taken_.size() >= 40) return;
  const Result<void> taken = guarded([&] { return pool_->allocate(pages); });
  require(fits ? taken.has_value() : taken.error() == Errc::kOutOfPages, "allocate");
  if (fits) taken_.insert(taken_.end(), pages.begin(), pages.end());
}

void CacheMachine::give() {
  require(pool_->release(taken_).has_value(), "release");
  taken_.clear();
}

void CacheMachine::ask(std::uint32_t prompt, std::uint32_t more) {
  prompt %= 64;
  more %= 64;
  const std::uint64_t available = capacity_ - used_pages();
  const std::uint64_t needed = tables() * pages_of(prompt + more);
  require(cache_->pages_available() == available, "pages available");
  require(cache_->pages_for_tokens(prompt + more) == needed, "pages for tokens");
  require(cache_->pages_for_tokens(prompt + more, 1 + more) <= needed, "pages for tokens in chunks");
  require(cache_->can_admit(prompt, more) == (available >= on_.watermark && needed <= available - on_.watermark),
          "can admit");
}

}  // namespace pagedkv::testing
