// Writes rows of K and V, with non-temporal stores on request. All targets.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/write.cc"
#include "kernels/write.h"

#include "cpu/amx.h"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
// Behind it, as it is compiled once a target.
#include "format/codec-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
using format::HWY_NAMESPACE::convert_elements;
using format::HWY_NAMESPACE::with_codec;

// Bytes as they are. Streams whole vectors between ordinary stores of the ragged ends.
void copy_row(std::byte* to, const std::byte* from, std::size_t bytes, bool stream) {
  const hn::ScalableTag<std::uint8_t> d;
  constexpr std::size_t kStep = hn::MaxLanes(d);
  std::size_t at = 0;
  if (stream && kStep > 1) {
    at = std::min(bytes, (kStep - reinterpret_cast<std::uintptr_t>(to) % kStep) % kStep);
    std::memcpy(to, from, at);
    for (; at + kStep <= bytes; at += kStep) {
      hn::Stream(hn::LoadU(d, reinterpret_cast<const std::uint8_t*>(from + at)), d,
                 reinterpret_cast<std::uint8_t*>(to + at));
    }
  }
  std::memcpy(to + at, from + at, bytes - at);
}

// Converts in pieces that stay in the L1 cache, then copies them out.
template <class From, class To>
void convert_row(std::byte* to, const void* from, std::size_t count, bool stream) {
  using Element = typename To::Stored;
  constexpr std::size_t kPiece = 256;
  alignas(64) Element piece[kPiece];
  const auto* const elements = static_cast<const typename From::Stored*>(from);
  for (std::size_t begin = 0; begin < count; begin += kPiece) {
    const std::size_t size = std::min(kPiece, count - begin);
    convert_elements<From, To>(elements + begin, size, piece);
    copy_row(to + begin * sizeof(Element), reinterpret_cast<const std::byte*>(piece), size * sizeof(Element), stream);
  }
}

void write_row(void* to, DType to_dtype, const void* from, DType from_dtype, std::size_t count, bool stream) noexcept {
  auto* const bytes = static_cast<std::byte*>(to);
  if (to_dtype == from_dtype)
    return copy_row(bytes, static_cast<const std::byte*>(from), count * size_of(to_dtype), stream);
  with_codec(from_dtype, [&](auto read) HWY_ATTR {
    with_codec(to_dtype, [&](auto written)
                             HWY_ATTR { convert_row<decltype(read), decltype(written)>(bytes, from, count, stream); });
  });
}

}  // namespace

WriteRowFn find_write() noexcept { return write_row; }

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pagedkv::kernels {

WriteRowFn find_write_row(cpu::Target target) noexcept {
  switch (target == cpu::Target::kAmx ? cpu::beside_amx() : target) {
#if HWY_TARGETS & HWY_AVX3
    case cpu::Target::kAvx512Bf16:
    case cpu::Target::kAvx512: return N_AVX3::find_write();
#endif
#if HWY_TARGETS & HWY_AVX2
    case cpu::Target::kAvx2: return N_AVX2::find_write();
#endif
#if HWY_TARGETS & HWY_SSE4
    case cpu::Target::kSse4: return N_SSE4::find_write();
#endif
#if HWY_TARGETS & HWY_NEON
    case cpu::Target::kNeon: return N_NEON::find_write();
#endif
    default: return N_SCALAR::find_write();
  }
}

void fence() noexcept { hwy::FlushStream(); }

}  // namespace pagedkv::kernels
#endif  // HWY_ONCE
