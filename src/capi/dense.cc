// The C functions of the two simple caches.

#include "capi/convert.h"
#include "capi/handles.h"

using namespace pagedkv;
using namespace pagedkv::capi;

namespace {

Result<DenseCacheOptions> read_dense(const pagedkv_dense_options& known) noexcept {
  Checks checks;
  DenseCacheOptions options;
  options.batch_size = known.batch_size;
  options.num_layers = known.num_layers;
  options.num_heads = known.num_heads;
  options.head_dim = known.head_dim;
  if (known.max_seq_len != 0) options.max_seq_len = known.max_seq_len;
  options.dtype = checks.dtype(known.dtype);
  if (known.page_size != 0) options.page_size = known.page_size;
  options.new_tokens_see_later_ones = known.new_tokens_see_later_ones != 0;
  options.target = checks.text(known.target);
  if (checks.failed()) return checks.error();
  return options;
}

Result<DenseCache> create_dense(const pagedkv_dense_options* given) noexcept {
  const Result<pagedkv_dense_options> known = read_sized(given);
  if (!known) return known.error();
  Result<DenseCacheOptions> options = read_dense(*known);
  if (!options) return options.error();
  if (known->pool == 0) return DenseCache::create(*options);
  Result<PoolTable::Use> pool = table<PoolTable>().use(known->pool);
  if (!pool) return pool.error();
  options->pool = &**pool;
  return DenseCache::create(*options);
}

Result<void> write_kv_of(const DenseKv& from, pagedkv_dense_kv* to) noexcept {
  pagedkv_dense_kv out{};
  out.batch_size = from.batch_size;
  out.num_heads = from.num_heads;
  out.head_dim = from.head_dim;
  out.page_size = from.page_size;
  out.dtype = static_cast<pagedkv_dtype>(from.dtype);
  out.seq_len = from.seq_len;
  out.pages = view_of(from.pages);
  out.page_table = from.page_table.data();
  out.page_table_stride = from.page_table_stride;
  return write_sized(out, to);
}

}  // namespace

pagedkv_status pagedkv_dense_create(const pagedkv_dense_options* options, pagedkv_dense* dense) {
  if (dense == nullptr) return report(kNullArgument);
  return report(give<DenseTable>(dense, [&] { return create_dense(options); }));
}

pagedkv_status pagedkv_dense_page_bytes(const pagedkv_dense_options* options, uint64_t* bytes) {
  if (bytes == nullptr) return report(kNullArgument);
  const Result<pagedkv_dense_options> known = read_sized(options);
  if (!known) return report(known.error());
  const Result<DenseCacheOptions> read = read_dense(*known);
  if (!read) return report(read.error());
  const Result<std::uint64_t> page_bytes = DenseCache::page_bytes(*read);
  if (!page_bytes) return report(page_bytes.error());
  *bytes = *page_bytes;
  return PAGEDKV_OK;
}

pagedkv_status pagedkv_dense_close(pagedkv_dense dense) { return capi::close<DenseTable>(dense); }

pagedkv_status pagedkv_dense_update(pagedkv_dense dense, uint32_t layer, pagedkv_const_tensor new_k,
                                    pagedkv_const_tensor new_v, pagedkv_dense_kv* kv) {
  return with<DenseTable>(dense, [&](DenseCache& object) -> Result<void> {
    Checks checks;
    const ConstTensor k = checks.tensor(new_k), v = checks.tensor(new_v);
    if (checks.failed()) return checks.error();
    if (kv != nullptr) {  // refused before anything changes
      pagedkv_dense_kv unused = {};
      unused.struct_size = kv->struct_size;
      if (Result<void> fits = write_sized(pagedkv_dense_kv{}, &unused); !fits) return fits;
    }
    const Result<DenseKv> held = object.update(layer, k, v);
    if (!held) return held.error();
    return kv != nullptr ? write_kv_of(*held, kv) : Result<void>{};
  });
}

pagedkv_status pagedkv_dense_get(pagedkv_dense dense, uint32_t layer, pagedkv_dense_kv* kv) {
  return with<DenseTable>(dense, [&](DenseCache& object) -> Result<void> {
    const Result<DenseKv> held = object.get(layer);
    return held ? write_kv_of(*held, kv) : held.error();
  });
}

pagedkv_status pagedkv_dense_copy(pagedkv_dense dense, uint32_t layer, pagedkv_tensor k, pagedkv_tensor v) {
  return with<DenseTable>(dense, [&](DenseCache& object) -> Result<void> {
    Checks checks;
    const Tensor keys = checks.tensor(k), values = checks.tensor(v);
    return checks.failed() ? checks.error() : object.copy(layer, keys, values);
  });
}

pagedkv_status pagedkv_dense_seq_length(pagedkv_dense dense, uint32_t layer, uint64_t* num_tokens) {
  if (num_tokens == nullptr) return report(kNullArgument);
  return with<DenseTable>(dense, [&](DenseCache& object) -> Result<void> {
    const Result<std::uint64_t> length = object.seq_length(layer);
    if (!length) return length.error();
    *num_tokens = *length;
    return {};
  });
}

pagedkv_status pagedkv_dense_reset(pagedkv_dense dense) {
  return with<DenseTable>(dense, [](DenseCache& object) -> Result<void> {
    object.reset();
    return {};
  });
}

pagedkv_status pagedkv_dense_cached_attention(pagedkv_dense dense, uint32_t layer, pagedkv_const_tensor q,
                                              pagedkv_const_tensor k, pagedkv_const_tensor v, pagedkv_tensor out) {
  return with<DenseTable>(dense, [&](DenseCache& object) -> Result<void> {
    Checks checks;
    const ConstTensor queries = checks.tensor(q), keys = checks.tensor(k), values = checks.tensor(v);
    const Tensor output = checks.tensor(out);
    return checks.failed() ? checks.error() : object.cached_attention(layer, queries, keys, values, output);
  });
}

pagedkv_status pagedkv_dense_get_stats(pagedkv_dense dense, pagedkv_pool_stats* stats) {
  return with<DenseTable>(dense, [&](DenseCache& object) { return write_sized(stats_of(object.pool_stats()), stats); });
}

// The interleaved cache -----------------------------------------------------------------------------------------------

namespace {

static_assert(sizeof(std::uintptr_t) >= sizeof(std::uint64_t), "a handle must fit into a pointer");
std::uint64_t handle_of(const kvcache* cache) noexcept { return reinterpret_cast<std::uintptr_t>(cache); }

/// [rows][head_dim] floats at `data`. Errors: kInvalidArgument
template <class T>
Result<std::span<T>> rows_of(T* data, int64_t rows, const InterleavedCache& cache) noexcept {
  if (data == nullptr) return kNullArgument;
  if (rows < 1 || static_cast<std::uint64_t>(rows) > cache.capacity_tokens()) {
    return Error{Errc::kInvalidArgument, "the number of rows is below 1 or more than the cache has room for"};
  }
  return std::span<T>(data, static_cast<std::size_t>(rows) * cache.head_dim());
}

}  // namespace

kvcache* kvcache_create(int64_t cap, int64_t head_dim) {
  if (cap < 1 || head_dim < 1 || head_dim > INT32_MAX) {
    (void)report(Error{Errc::kInvalidArgument, "cap and head_dim must be at least 1"});
    return nullptr;
  }
  std::uint64_t handle = 0;
  (void)report(give<InterleavedTable>(&handle, [&] {
    return InterleavedCache::create(static_cast<std::uint64_t>(cap), static_cast<std::uint32_t>(head_dim));
  }));
  // The pointer that callers hold is a checked handle, never followed.
  return reinterpret_cast<kvcache*>(static_cast<std::uintptr_t>(handle));  // NOLINT(performance-no-int-to-ptr)
}

int32_t kvcache_append(kvcache* cache, const float* k, const float* v, int64_t rows) {
  return with<InterleavedTable>(handle_of(cache), [&](InterleavedCache& object) -> Result<void> {
    const auto keys = rows_of(k, rows, object), values = rows_of(v, rows, object);
    if (!keys) return keys.error();
    if (!values) return values.error();
    return object.append(*keys, *values);
  });
}

int64_t kvcache_len(const kvcache* cache) {
  int64_t length = -1;
  (void)ask<InterleavedTable>(handle_of(cache), &length, [](InterleavedCache& object) { return object.num_tokens(); });
  return length;
}

int32_t kvcache_reset(kvcache* cache) {
  return with<InterleavedTable>(handle_of(cache), [](InterleavedCache& object) -> Result<void> {
    object.reset();
    return {};
  });
}

int32_t kvcache_attend(const kvcache* cache, const float* q, float* out) {
  return with<InterleavedTable>(handle_of(cache), [&](InterleavedCache& object) -> Result<void> {
    const auto query = rows_of(q, 1, object);
    const auto output = rows_of(out, 1, object);
    if (!query) return query.error();
    if (!output) return output.error();
    return object.attend(*query, *output);
  });
}

int32_t kvcache_attend_last(const kvcache* cache, const float* q, int64_t rows, float* out) {
  return with<InterleavedTable>(handle_of(cache), [&](InterleavedCache& object) -> Result<void> {
    const auto queries = rows_of(q, rows, object);
    const auto output = rows_of(out, rows, object);
    if (!queries) return queries.error();
    if (!output) return output.error();
    return object.attend_last(*queries, *output);
  });
}

const float* kvcache_rows(const kvcache* cache) {
  const float* rows = nullptr;
  (void)ask<InterleavedTable>(handle_of(cache), &rows, [](InterleavedCache& object) { return object.rows().data(); });
  return rows;
}

void kvcache_free(kvcache* cache) { (void)capi::close<InterleavedTable>(handle_of(cache)); }
