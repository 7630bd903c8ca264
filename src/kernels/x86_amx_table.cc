// The hand-written AMX kernels, by shape.
#include <algorithm>
#include <iterator>

#include "kernels/kernel_table.h"
#include "kernels/x86_amx_kernels.h"

namespace pagedkv::kernels {

#if defined(__x86_64__)
namespace {

std::size_t decode_scratch(const AttendParams& params, std::int32_t) noexcept {
  return amx::decode_scratch_bytes(params);
}
constexpr AttendKernel kDecode = {amx::attend_decode, decode_scratch, amx::kDecodeColumns};

std::size_t split_decode_scratch(const AttendParams& params, std::int32_t) noexcept {
  return amx::split_decode_scratch_bytes(params);
}
constexpr AttendKernel kSplitDecode = {amx::attend_split_decode, split_decode_scratch, amx::kDecodeColumns};

std::size_t prefill_scratch(const AttendParams& params, std::int32_t) noexcept {
  return amx::prefill_scratch_bytes(params);
}
// A task of 512 to 1024 columns (more in groups above 64) pays for packing K and V and leaves work to share out.
constexpr AttendKernel kPrefill[] = {
    {amx::attend_prefill, prefill_scratch, 512}, {amx::attend_prefill, prefill_scratch, 256},
    {amx::attend_prefill, prefill_scratch, 128}, {amx::attend_prefill, prefill_scratch, 64},
    {amx::attend_prefill, prefill_scratch, 32},  {amx::attend_prefill, prefill_scratch, 16}};

// Up to so many columns over f16 pages prefill is slower than AVX-512: tiles must be packed, and at f32 precision take
// 4 to 6 products for one.
std::int64_t f16_columns(const AttendParams& params) noexcept { return params.f16_as_bf16 ? amx::kDecodeColumns : 32; }

// True if decode over bf16 pages is as fast as AVX-512 or faster: with one or two columns it waits longer for tiles
// than vectors take for all there is to compute. Rows narrower than a tile would have to be copied first.
bool decode_pays(const AttendParams& params, std::int64_t columns) noexcept {
  return columns > 2 && std::min(params.head_dim, params.v_head_dim) >= 32;
}

// True if so many columns make decode worth cutting K and V into terms: with fewer AVX-512 is as fast, or faster. Rows
// that are not whole tiles would have to be copied first.
bool split_decode_pays(const AttendParams& params, std::int64_t columns) noexcept {
  if ((params.head_dim | params.v_head_dim) % 32 != 0) return false;
  return columns >= (params.head_dim + std::uint64_t{params.v_head_dim} >= 1024 ? 9 : 13);
}

const AttendKernel* prefill_for(std::uint32_t group) noexcept {
  const AttendKernel* kernel = kPrefill;
  for (std::uint32_t columns = 2; columns < group && kernel + 1 != std::end(kPrefill); columns *= 2) ++kernel;
  return kernel;
}

}  // namespace

const AttendKernel* find_amx_attend(const AttendParams& params, std::int64_t q_len) noexcept {
  if (params.kv_dtype == DType::f32) return nullptr;
  // Columns are the rows of the sequence times the heads of the group; both factors are at most 2^32.
  const auto has_more_columns = [&](std::int64_t than) { return q_len > than || q_len * params.group > than; };
  const bool is_decode = !has_more_columns(amx::kDecodeColumns);
  if (params.kv_dtype == DType::f16) {  // in bf16 terms, which pays from some columns on
    if (has_more_columns(f16_columns(params))) return prefill_for(params.group);
    return is_decode && split_decode_pays(params, q_len * params.group) ? &kSplitDecode : nullptr;
  }
  if (!is_decode) return prefill_for(params.group);
  return decode_pays(params, q_len * params.group) ? &kDecode : nullptr;
}
#else
const AttendKernel* find_amx_attend(const AttendParams&, std::int64_t) noexcept { return nullptr; }
#endif

}  // namespace pagedkv::kernels
