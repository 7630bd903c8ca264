// The dense cache: a page table for each layer and row of the batch, written and attended head by head.
#include "pagedkv/dense_cache.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "cache/page_layout.h"
#include "core/align.h"
#include "cpu/targets.h"
#include "format/convert.h"
#include "memory/page_array.h"
#include "pool/pool_impl.h"

namespace pagedkv {
namespace {

constexpr Error kMovedFrom{Errc::kClosed, "the dense cache was moved from"};
constexpr Error kBadLayer{Errc::kInvalidArgument, "layer is out of range"};
constexpr Error kBadSize{Errc::kInvalidArgument, "a tensor is not of [batch_size, num_heads, new_len, head_dim]"};
constexpr std::uint32_t kMaxBatch = 65536;

Result<cache::PageLayout> layout_of(const DenseCacheOptions& options) noexcept {
  return cache::PageLayout::create({.num_layers = 1,
                                    .num_q_heads = options.num_heads,
                                    .num_kv_heads = options.num_heads,
                                    .head_dim = options.head_dim,
                                    .dtype = options.dtype},
                                   options.page_size);
}

}  // namespace

struct DenseCache::Impl {
  /// The pages of one layer: all rows of the batch are equally long.
  struct Layer {
    std::span<std::int32_t> page_table;  // [batch_size][max_pages], the first num_pages of each row set
    std::uint64_t num_pages = 0;         // of each row of the batch, perhaps more than are in use after a reset
    std::uint64_t seq_len = 0;
  };

  /// What a layer grows by during a call; given back unless the call comes to its end.
  class Growth {
   public:
    Growth(Impl& cache, Layer& layer) noexcept : cache_(&cache), layer_(layer), num_pages_before_(layer.num_pages) {}
    Growth(const Growth&) = delete;
    Growth& operator=(const Growth&) = delete;
    ~Growth() {
      if (cache_ != nullptr) cache_->shrink(layer_, num_pages_before_);
    }
    void keep(std::uint64_t new_len) noexcept {
      layer_.seq_len += new_len;
      cache_ = nullptr;
    }

   private:
    Impl* cache_;
    Layer& layer_;
    std::uint64_t num_pages_before_;
  };

  DenseCacheOptions options;
  std::string target;
  cache::PageLayout layout;
  AttentionConfig attention;
  std::shared_ptr<PagePool::Impl> pool;
  std::uint64_t max_pages = 0;                  // of a row of the batch, in one layer
  memory::PageArray<std::int32_t> page_tables;  // [num_layers][batch_size][max_pages], which views point into
  std::vector<Layer> layers;
  std::vector<PageId> fresh;             // scratch of `grow`
  std::vector<std::int64_t> slots;       // scratch of `write`: [new_len]
  std::vector<std::byte> q_token_major;  // scratch of `attend`: [batch_size][new_len][num_heads][head_dim]

  ~Impl();
  Result<void> assign(const DenseCacheOptions& wanted);
  Result<void> make_page_tables();
  [[nodiscard]] std::uint64_t elements_a_token() const noexcept {
    return std::uint64_t{options.batch_size} * options.num_heads * options.head_dim;
  }
  Result<std::uint64_t> check_new(std::uint32_t layer, ConstTensor k, ConstTensor v) const noexcept;
  Result<void> grow(Layer& layer, std::uint64_t seq_len);
  void shrink(Layer& layer, std::uint64_t num_pages) noexcept;
  Result<void> write(const Layer& layer, std::uint64_t new_len, ConstTensor k, ConstTensor v);
  Result<void> attend(const Layer& layer, std::uint64_t new_len, ConstTensor q, Tensor out);
  ConstTensor by_token(ConstTensor q, std::uint64_t new_len);
  [[nodiscard]] DenseKv kv_of(const Layer& layer) const noexcept;
};

// Creation ------------------------------------------------------------------------------------------------------------

Result<void> DenseCache::Impl::assign(const DenseCacheOptions& wanted) {
  const auto invalid = [](const char* what) { return Error{Errc::kInvalidArgument, what}; };
  if (wanted.batch_size == 0 || wanted.batch_size > kMaxBatch) return invalid("batch_size must be 1..65536");
  if (wanted.num_layers == 0 || wanted.num_layers > cache::kMaxLayers) return invalid("num_layers must be 1..4096");
  if (wanted.max_seq_len == 0 || wanted.max_seq_len > kMaxSequenceTokens) return invalid("max_seq_len must be 1..2^30");
  Result<cache::PageLayout> made = layout_of(wanted);
  if (!made) return made.error();
  const auto found = cpu::choose_target(wanted.target);
  if (!found) return found.error();
  options = wanted;
  layout = *made;
  target = (*found)->name;
  options.target = target;
  max_pages = ceil_div(options.max_seq_len, options.page_size);
  attention = {.num_q_heads = options.num_heads,
               .num_kv_heads = options.num_heads,
               .head_dim = options.head_dim,
               .page_size = options.page_size,
               .kv_dtype = options.dtype,
               .target = options.target};
  attention.variant.causal = !options.new_tokens_see_later_ones;
  if (options.pool != nullptr) {
    pool = options.pool->impl();
    options.pool = nullptr;  // borrowed until here
    if (!pool) return Error{Errc::kClosed, "the pool was moved from"};
    if (pool->page_bytes() != layout.page_bytes) return invalid("the pages of the pool have other bytes");
  } else {
    // At most 2^16 * 2^12 * 2^31: no overflow. Only address space; memory comes with the first use of a page.
    Result<PagePool> own =
        PagePool::create({.page_bytes = layout.page_bytes,
                          .capacity_pages = std::uint64_t{options.batch_size} * options.num_layers * max_pages,
                          .huge_pages = HugePages::kNever});
    if (!own) return own.error();
    pool = own->impl();
  }
  return make_page_tables();
}

/// Memory for them comes with the pages that they list, too.
Result<void> DenseCache::Impl::make_page_tables() {
  const std::size_t layer_entries = options.batch_size * max_pages;
  auto made = memory::PageArray<std::int32_t>::create(pool->os(), options.num_layers * layer_entries, false);
  if (!made) return made.error();
  page_tables = std::move(*made);
  layers.resize(options.num_layers);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    layers[i].page_table = {&page_tables[static_cast<std::int64_t>(i * layer_entries)], layer_entries};
  }
  return {};
}

DenseCache::Impl::~Impl() {
  for (Layer& layer : layers) shrink(layer, 0);
}

// Growing and writing -------------------------------------------------------------------------------------------------

/// The number of new tokens, if everything fits.
Result<std::uint64_t> DenseCache::Impl::check_new(std::uint32_t layer, ConstTensor k, ConstTensor v) const noexcept {
  if (layer >= layers.size()) return kBadLayer;
  if (!is_valid(k.dtype) || !is_valid(v.dtype)) return Error{Errc::kInvalidArgument, "dtype of a tensor is unknown"};
  if (k.data == nullptr || v.data == nullptr) return Error{Errc::kInvalidArgument, "a tensor is null"};
  const std::uint64_t new_len = k.num_elements / elements_a_token();
  if (new_len == 0 || k.num_elements != new_len * elements_a_token() || v.num_elements != k.num_elements) {
    return kBadSize;
  }
  if (new_len > options.max_seq_len - layers[layer].seq_len) {
    return Error{Errc::kInvalidArgument, "the layer would hold more than max_seq_len tokens"};
  }
  return new_len;
}

/// Pages for `seq_len` tokens of all rows of the batch, or nothing changed. May throw std::bad_alloc.
Result<void> DenseCache::Impl::grow(Layer& layer, std::uint64_t seq_len) {
  const std::uint64_t num_pages = ceil_div(seq_len, options.page_size);
  if (num_pages <= layer.num_pages) return {};
  const std::uint64_t num_more = num_pages - layer.num_pages;
  fresh.resize(num_more * options.batch_size);
  if (Result<void> allocated = pool->allocate(fresh); !allocated) return allocated;
  for (std::uint64_t b = 0; b < options.batch_size; ++b) {
    for (std::uint64_t i = 0; i < num_more; ++i) {
      layer.page_table[b * max_pages + layer.num_pages + i] = to_index(fresh[b * num_more + i]);
    }
  }
  layer.num_pages = num_pages;
  return {};
}

void DenseCache::Impl::shrink(Layer& layer, std::uint64_t num_pages) noexcept {
  while (layer.num_pages > num_pages) {
    --layer.num_pages;
    for (std::uint64_t b = 0; b < options.batch_size; ++b) {
      const PageId id{layer.page_table[b * max_pages + layer.num_pages]};
      (void)pool->release({&id, 1});
    }
  }
}

/// Writes rows behind those held. The tensors are head-major, so that each head is written as a cache of one head.
Result<void> DenseCache::Impl::write(const Layer& layer, std::uint64_t new_len, ConstTensor k, ConstTensor v) {
  AttentionConfig one_head = attention;
  one_head.num_q_heads = one_head.num_kv_heads = 1;
  const KvWriteView pages = layout.write_view(pool->base(), 0, pool->reserved_pages());
  const std::size_t run = new_len * options.head_dim;  // elements of one head of one row of the batch
  const auto part = [run](ConstTensor whole, std::size_t index) {
    const auto* data = static_cast<const std::byte*>(whole.data) + index * run * size_of(whole.dtype);
    return ConstTensor(data, run, whole.dtype);
  };
  slots.resize(new_len);
  for (std::uint32_t b = 0; b < options.batch_size; ++b) {
    for (std::uint64_t i = 0; i < new_len; ++i) {
      const std::uint64_t token = layer.seq_len + i;
      const std::int64_t page = layer.page_table[b * max_pages + token / options.page_size];
      slots[i] = page * options.page_size + static_cast<std::int64_t>(token % options.page_size);
    }
    for (std::uint32_t h = 0; h < options.num_heads; ++h) {
      KvWriteView head = pages;
      head.k = static_cast<std::byte*>(pages.k) + h * pages.k_head_stride;
      head.v = static_cast<std::byte*>(pages.v) + h * pages.v_head_stride;
      const std::size_t index = std::size_t{b} * options.num_heads + h;
      if (Result<void> done = write_kv(one_head, head, slots, part(k, index), part(v, index)); !done) return done;
    }
  }
  return {};
}

// Attention -----------------------------------------------------------------------------------------------------------

/// q with tokens before heads, as plans read it. With one new token it lies so already.
ConstTensor DenseCache::Impl::by_token(ConstTensor q, std::uint64_t new_len) {
  if (new_len == 1) return q;
  const std::size_t row_bytes = options.head_dim * size_of(q.dtype);
  q_token_major.resize(q.num_elements * size_of(q.dtype));
  const auto* from = static_cast<const std::byte*>(q.data);
  for (std::uint64_t b = 0; b < options.batch_size; ++b) {
    for (std::uint64_t h = 0; h < options.num_heads; ++h) {
      for (std::uint64_t i = 0; i < new_len; ++i, from += row_bytes) {
        std::memcpy(&q_token_major[((b * new_len + i) * options.num_heads + h) * row_bytes], from, row_bytes);
      }
    }
  }
  return {q_token_major.data(), q.num_elements, q.dtype};
}

Result<void> DenseCache::Impl::attend(const Layer& layer, std::uint64_t new_len, ConstTensor q, Tensor out) {
  std::vector<std::int32_t> qo_indptr(options.batch_size + 1);
  for (std::size_t b = 0; b < qo_indptr.size(); ++b) qo_indptr[b] = static_cast<std::int32_t>(b * new_len);
  const std::vector<std::int32_t> seq_lens(options.batch_size, static_cast<std::int32_t>(layer.seq_len + new_len));
  const Result<AttentionPlan> plan =
      AttentionPlan::create(attention, {.qo_indptr = qo_indptr,
                                        .block_table = layer.page_table,
                                        .block_table_stride = static_cast<std::int64_t>(max_pages),
                                        .seq_lens = seq_lens});
  if (!plan) return plan.error();
  return plan->run(layout.view(pool->base(), 0, pool->reserved_pages()), by_token(q, new_len), out);
}

DenseKv DenseCache::Impl::kv_of(const Layer& layer) const noexcept {
  return {.batch_size = options.batch_size,
          .num_heads = options.num_heads,
          .head_dim = options.head_dim,
          .seq_len = layer.seq_len,
          .page_size = options.page_size,
          .dtype = options.dtype,
          .pages = layout.view(pool->base(), 0, pool->reserved_pages()),
          .page_table = layer.page_table,
          .page_table_stride = max_pages};
}

// The public face -----------------------------------------------------------------------------------------------------

Result<DenseCache> DenseCache::create(const DenseCacheOptions& options) noexcept try {
  auto impl = std::make_unique<Impl>();
  if (Result<void> assigned = impl->assign(options); !assigned) return assigned.error();
  return DenseCache(std::move(impl));
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory for the dense cache"};
}

Result<std::uint64_t> DenseCache::page_bytes(const DenseCacheOptions& options) noexcept {
  const Result<cache::PageLayout> layout = layout_of(options);
  if (!layout) return layout.error();
  return layout->page_bytes;
}

Result<DenseKv> DenseCache::update(std::uint32_t layer, ConstTensor new_k, ConstTensor new_v) noexcept try {
  if (!impl_) return kMovedFrom;
  const Result<std::uint64_t> new_len = impl_->check_new(layer, new_k, new_v);
  if (!new_len) return new_len.error();
  Impl::Layer& grown = impl_->layers[layer];
  Impl::Growth growth(*impl_, grown);
  if (Result<void> done = impl_->grow(grown, grown.seq_len + *new_len); !done) return done.error();
  if (Result<void> done = impl_->write(grown, *new_len, new_k, new_v); !done) return done.error();
  growth.keep(*new_len);
  return impl_->kv_of(grown);
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory to append to the dense cache"};
}

Result<DenseKv> DenseCache::get(std::uint32_t layer) const noexcept {
  if (!impl_) return kMovedFrom;
  if (layer >= impl_->layers.size()) return kBadLayer;
  return impl_->kv_of(impl_->layers[layer]);
}

Result<void> DenseCache::copy(std::uint32_t layer, Tensor k, Tensor v) const noexcept {
  const Result<DenseKv> held = get(layer);
  if (!held) return held.error();
  const std::uint64_t num_elements = held->seq_len * impl_->elements_a_token();
  if (k.num_elements != num_elements || v.num_elements != num_elements || !is_valid(k.dtype) || !is_valid(v.dtype)) {
    return Error{Errc::kInvalidArgument, "a tensor is not of [batch_size, num_heads, seq_len, head_dim]"};
  }
  if (num_elements > 0 && (k.data == nullptr || v.data == nullptr)) {
    return Error{Errc::kInvalidArgument, "a tensor is null"};
  }
  const auto copy_row = [&held](Tensor to, std::size_t at, const void* row) {
    for (std::size_t d = 0; d < held->head_dim; ++d) {
      format::store_element(to.data, at + d, to.dtype, format::load_element(row, d, held->dtype));
    }
  };
  std::size_t at = 0;
  for (std::uint32_t b = 0; b < held->batch_size; ++b) {
    for (std::uint32_t h = 0; h < held->num_heads; ++h) {
      for (std::uint64_t t = 0; t < held->seq_len; ++t, at += held->head_dim) {
        copy_row(k, at, held->k_row(b, h, t));
        copy_row(v, at, held->v_row(b, h, t));
      }
    }
  }
  return {};
}

Result<void> DenseCache::cached_attention(std::uint32_t layer, ConstTensor q, ConstTensor k, ConstTensor v,
                                          Tensor out) noexcept try {
  if (!impl_) return kMovedFrom;
  const Result<std::uint64_t> new_len = impl_->check_new(layer, k, v);
  if (!new_len) return new_len.error();
  if (q.num_elements != k.num_elements || !is_valid(q.dtype) || q.data == nullptr) return kBadSize;
  if (out.num_elements != q.num_elements || !is_valid(out.dtype) || out.data == nullptr) {
    return Error{Errc::kInvalidArgument, "out is not of [batch_size, new_len, num_heads * head_dim]"};
  }
  Impl::Layer& grown = impl_->layers[layer];
  Impl::Growth growth(*impl_, grown);
  if (Result<void> done = impl_->grow(grown, grown.seq_len + *new_len); !done) return done;
  if (Result<void> done = impl_->write(grown, *new_len, k, v); !done) return done;
  if (Result<void> done = impl_->attend(grown, *new_len, q, out); !done) return done;
  growth.keep(*new_len);
  return {};
} catch (const std::bad_alloc&) {
  return Error{Errc::kOutOfMemory, "no memory to attend over the dense cache"};
}

void DenseCache::reset() noexcept {
  if (!impl_) return;
  for (Impl::Layer& layer : impl_->layers) layer.seq_len = 0;
}

Result<std::uint64_t> DenseCache::seq_length(std::uint32_t layer) const noexcept {
  if (!impl_) return kMovedFrom;
  if (layer >= impl_->layers.size()) return kBadLayer;
  return impl_->layers[layer].seq_len;
}

const DenseCacheOptions& DenseCache::options() const noexcept {
  static const DenseCacheOptions kNone = {};
  return impl_ ? impl_->options : kNone;
}

PoolStats DenseCache::pool_stats() const noexcept { return impl_ ? impl_->pool->stats() : PoolStats{}; }

DenseCache::DenseCache(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
DenseCache::DenseCache(DenseCache&&) noexcept = default;
DenseCache& DenseCache::operator=(DenseCache&&) noexcept = default;
DenseCache::~DenseCache() = default;

}  // namespace pagedkv
