// The generic attention kernels of all targets, and their list.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attend.cc"
#include "cpu/amx.h"
#include "hwy/foreach_target.h"
#include "kernels/attend-inl.h"
#include "kernels/kernel_table.h"

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
namespace {

StoredRows stored(const AttendParams& params) noexcept {
  if (params.kv_dtype == DType::f32) return find_stored_f32();
  return params.kv_dtype == DType::f16 ? find_stored_f16() : find_stored_bf16();
}

#if HWY_TARGET == HWY_AVX3
StoredRows stored_avx512_bf16(const AttendParams& params) noexcept {
  if (params.kv_dtype == DType::f32) return find_stored_f32_avx512_bf16();
  return params.kv_dtype == DType::f16 ? find_stored_f16_avx512_bf16(params.q_dtype, params.f16_as_bf16)
                                       : find_stored_bf16_avx512_bf16(params.q_dtype);
}
#endif

template <StoredRows (*kStored)(const AttendParams&) noexcept>
void attend(const AttendParams& params, const AttendTask& task, std::byte* scratch) noexcept {
  Attention(params, task, kStored(params), scratch).run();
}

template <StoredRows (*kStored)(const AttendParams&) noexcept>
std::size_t scratch_bytes(const AttendParams& params, std::int32_t max_rows) noexcept {
  return Attention::scratch_bytes(params, kStored(params), max_rows);
}

}  // namespace

// Finders export addresses: a table of noexcept functions is more than HWY_EXPORT of Highway 1.0 can hold.
AttendFn find_attend() noexcept { return attend<stored>; }
ScratchFn find_scratch() noexcept { return scratch_bytes<stored>; }
#if HWY_TARGET == HWY_AVX3
AttendFn find_attend_avx512_bf16() noexcept { return attend<stored_avx512_bf16>; }
ScratchFn find_scratch_avx512_bf16() noexcept { return scratch_bytes<stored_avx512_bf16>; }
#endif

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pagedkv::kernels {
namespace {

// Rows a task by group: about 256 (row, head) pairs keep queries, scores and output of a task in the L2 cache, and
// spread the conversion of a block over enough rows.
constexpr std::int32_t kRowsByGroup[] = {256, 128, 64, 32, 16, 8};
constexpr std::size_t kNumHeights = std::size(kRowsByGroup);
using Kernels = std::array<AttendKernel, kNumHeights>;

Kernels make(AttendFn attend, ScratchFn scratch) noexcept {
  Kernels kernels = {};
  for (std::size_t i = 0; i < kNumHeights; ++i) kernels[i] = {attend, scratch, kRowsByGroup[i]};
  return kernels;
}

const Kernels& kernels_of(cpu::Target target) noexcept {
  switch (target) {
#if HWY_TARGETS & HWY_AVX3
    case cpu::Target::kAvx512Bf16: {
      static const Kernels kernels = make(N_AVX3::find_attend_avx512_bf16(), N_AVX3::find_scratch_avx512_bf16());
      return kernels;
    }
    case cpu::Target::kAvx512: {
      static const Kernels kernels = make(N_AVX3::find_attend(), N_AVX3::find_scratch());
      return kernels;
    }
#endif
#if HWY_TARGETS & HWY_AVX2
    case cpu::Target::kAvx2: {
      static const Kernels kernels = make(N_AVX2::find_attend(), N_AVX2::find_scratch());
      return kernels;
    }
#endif
#if HWY_TARGETS & HWY_SSE4
    case cpu::Target::kSse4: {
      static const Kernels kernels = make(N_SSE4::find_attend(), N_SSE4::find_scratch());
      return kernels;
    }
#endif
#if HWY_TARGETS & HWY_NEON
    case cpu::Target::kNeon: {
      static const Kernels kernels = make(N_NEON::find_attend(), N_NEON::find_scratch());
      return kernels;
    }
#endif
    default: {
      static const Kernels kernels = make(N_SCALAR::find_attend(), N_SCALAR::find_scratch());
      return kernels;
    }
  }
}

}  // namespace

const AttendKernel* generic_attend(cpu::Target target, std::uint32_t group) noexcept {
  std::size_t height = 0;
  while (height + 1 < kNumHeights && (std::uint32_t{1} << height) < group) ++height;
  return &kernels_of(target == cpu::Target::kAmx ? cpu::beside_amx() : target)[height];
}

const AttendKernel* select_attend(cpu::Target target, const AttendParams& params, std::int64_t q_len) noexcept {
  if (target == cpu::Target::kAmx) {
    if (const AttendKernel* const kernel = find_amx_attend(params, q_len); kernel != nullptr) return kernel;
  }
  return generic_attend(target, params.group);
}

}  // namespace pagedkv::kernels
#endif  // HWY_ONCE
