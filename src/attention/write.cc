// write_kv and merge_states: what an engine calls beside a plan.
#include "kernels/write.h"

#include <algorithm>
#include <atomic>
#include <limits>

#include "attention/batch.h"
#include "attention/parallel.h"
#include "core/align.h"
#include "cpu/targets.h"
#include "kernels/merge.h"
#include "pagedkv/attention.h"

namespace pagedkv {
namespace {

// Less than this is likely to be read again from a cache; more would only evict what is in use.
constexpr std::size_t kStreamBytes = std::size_t{512} << 10;
constexpr std::size_t kParallelBytes = std::size_t{256} << 10;

/// One call of write_kv, checked.
struct Writer {
  kernels::AttendParams params;
  const KvWriteView& pages;
  std::span<const std::int64_t> slots;
  ConstTensor k, v;
  kernels::WriteRowFn write_row;
  bool stream;

  void tokens(std::size_t begin, std::size_t end) const noexcept {
    for (std::size_t i = begin; i < end; ++i) {
      if (slots[i] < 0) continue;
      const std::int64_t page = slots[i] / params.page_size, slot = slots[i] % params.page_size;
      for (std::uint32_t head = 0; head < params.num_kv_heads; ++head) {
        const std::size_t row = i * params.num_kv_heads + head;
        const std::int64_t h = head;
        write(static_cast<std::byte*>(pages.k) + page * pages.k_page_stride + h * pages.k_head_stride +
                  slot * pages.k_token_stride,
              k, row, params.head_dim);
        write(static_cast<std::byte*>(pages.v) + page * pages.v_page_stride + h * pages.v_head_stride +
                  slot * pages.v_token_stride,
              v, row, params.v_head_dim);
      }
    }
    if (stream) kernels::fence();
  }

  void write(std::byte* to, const ConstTensor& from, std::size_t row, std::size_t count) const noexcept {
    const auto* const elements = static_cast<const std::byte*>(from.data) + row * count * size_of(from.dtype);
    write_row(to, params.kv_dtype, elements, from.dtype, count, stream);
  }
};

constexpr Error invalid(const char* what) noexcept { return {Errc::kInvalidArgument, what}; }

// One more than the page of the largest slot, at least 1.
std::int64_t page_id_limit(std::span<const std::int64_t> slots, std::uint32_t page_size) noexcept {
  std::int64_t largest = 0;
  for (const std::int64_t slot : slots) largest = std::max(largest, slot);
  return largest / page_size + 1;
}

}  // namespace

Result<void> write_kv(const AttentionConfig& config, const KvWriteView& pages, std::span<const std::int64_t> slots,
                      ConstTensor k, ConstTensor v) noexcept {
  auto params = attention::read_layer(config);
  if (!params.has_value()) return params.error();
  if (!is_valid(k.dtype) || !is_valid(v.dtype) ||
      k.num_elements != slots.size() * params->num_kv_heads * params->head_dim ||
      v.num_elements != slots.size() * params->num_kv_heads * params->v_head_dim) {
    return invalid("k or v does not have one row a slot and head");
  }
  if (slots.empty()) return {};
  if (k.data == nullptr || v.data == nullptr) return invalid("k and v must not be null");
  if (pages.num_pages > std::numeric_limits<std::int64_t>::max() / config.page_size) {
    return invalid("there are more pages than slots have numbers");
  }
  if (auto checked = attention::check_view(*params, pages, page_id_limit(slots, config.page_size)); !checked)
    return checked;
  const auto found = cpu::choose_target(config.target);
  if (!found) return found.error();

  const std::size_t token_bytes =
      std::size_t{params->num_kv_heads} * (params->head_dim + params->v_head_dim) * size_of(params->kv_dtype);
  const std::size_t bytes = slots.size() * token_bytes;
  const Writer writer = {.params = *params,
                         .pages = pages,
                         .slots = slots,
                         .k = k,
                         .v = v,
                         .write_row = kernels::find_write_row(cpu::target_of(**found)),
                         .stream = bytes >= kStreamBytes};
  if (bytes < kParallelBytes) {
    writer.tokens(0, slots.size());
    return {};
  }
  try {
    const std::size_t grain = std::max<std::size_t>(1, kParallelBytes / 4 / token_bytes);
    std::atomic<std::size_t> written{0};
    attention::parallel_indices(ceil_div(slots.size(), grain), [&](std::size_t index) noexcept {
      const std::size_t first = index * grain, last = std::min(first + grain, slots.size());
      writer.tokens(first, last);
      written.fetch_add(last - first, std::memory_order_relaxed);
    });
    if (written.load() != slots.size())
      return Error{Errc::kCancelled, "the task group was cancelled; pages are part written"};
  } catch (...) {
    return Error{Errc::kOutOfMemory, "the scheduler had no memory for its tasks"};
  }
  return {};
}

Result<void> merge_states(std::span<float> out_a, std::span<float> lse_a, std::span<const float> out_b,
                          std::span<const float> lse_b) noexcept {
  const std::size_t rows = lse_a.size();
  if (lse_b.size() != rows || out_a.size() != out_b.size() || (rows == 0 ? !out_a.empty() : out_a.size() % rows != 0)) {
    return invalid("the two states must have the same rows and dims");
  }
  if (rows == 0) return {};
  const std::size_t dim = out_a.size() / rows;
  for (std::size_t row = 0; row < rows; ++row) {
    kernels::merge_row(out_a.data() + row * dim, &lse_a[row], out_b.data() + row * dim, lse_b[row], dim);
  }
  return {};
}

}  // namespace pagedkv
