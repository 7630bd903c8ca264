// From scores to logits: soft cap, ALiBi and explicit masks, over the scores [64] of one row and head in a block of
// keys. Compiled once a target.
//
// Layer: kernels. Scores of keys outside the span become anything; the softmax takes the span alone.
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/block.h"
#include "kernels/softmax-inl.h"
#include "pagedkv/attention.h"

#if defined(PAGEDKV_KERNELS_LOGITS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PAGEDKV_KERNELS_LOGITS_INL_H_
#undef PAGEDKV_KERNELS_LOGITS_INL_H_
#else
#define PAGEDKV_KERNELS_LOGITS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace pagedkv::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr auto kKeysAtOnce = static_cast<std::int64_t>(kLanes);  // of a vector of scores

// First key of the first vector that holds a key of the span.
HWY_INLINE std::int64_t first_vector(Span keys) { return keys.first / kKeysAtOnce * kKeysAtOnce; }

HWY_INLINE void cap_scores(float* scores, Span keys, float logits_soft_cap) {
  const F32 d;
  const VecF32 cap = hn::Set(d, logits_soft_cap), inverse = hn::Set(d, 1.0F / logits_soft_cap);
  for (std::int64_t key = first_vector(keys); key < keys.last; key += kKeysAtOnce) {
    const VecF32 score = hn::LoadU(d, scores + key);
    hn::StoreU(hn::Mul(cap, tanh_f32(hn::Mul(score, inverse))), d, scores + key);
  }
}

// `distance` is that of key 0 of the block from the row's position.
HWY_INLINE void add_alibi(float* scores, Span keys, float slope, std::int64_t distance) {
  const F32 d;
  const hn::RebindToSigned<F32> di;
  const auto lane = hn::Iota(di, 0);  // a constant: from a variable it would go through memory
  for (std::int64_t key = first_vector(keys); key < keys.last; key += kKeysAtOnce) {
    const auto distances = hn::Add(hn::Set(di, static_cast<std::int32_t>(distance + key)), lane);
    const VecF32 score = hn::LoadU(d, scores + key);
    hn::StoreU(hn::MulAdd(hn::Set(d, slope), hn::ConvertTo(d, distances), score), d, scores + key);
  }
}

// The bits of up to 64 entries of a mask of bits, the first one lowest; those behind the last are anything. Reads no
// byte that holds none of the entries.
inline std::uint64_t entries_of_bits(const std::byte* mask, std::int64_t entry, std::int64_t count) {
  const std::byte* const bytes = mask + entry / 8;
  const std::int64_t skipped = entry % 8, num_bytes = (skipped + count + 7) / 8;
  std::uint64_t bits = std::to_integer<std::uint64_t>(bytes[0]) >> skipped;
  for (std::int64_t i = 1; i < num_bytes; ++i) bits |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i - skipped);
  return bits;
}

// The same of up to 64 entries of a byte each.
inline std::uint64_t entries_of_bytes(const std::byte* entries, std::int64_t count) {
  static_assert(std::endian::native == std::endian::little);
  constexpr std::uint64_t kLow = 0x7f7f7f7f7f7f7f7f, kGather = 0x0102040810204080;  // bit 8 i to 56 + i
  std::uint64_t bits = 0;
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    std::uint64_t eight = 0;
    std::memcpy(&eight, entries + i, sizeof(eight));
    const std::uint64_t signs = (((eight & kLow) + kLow) | eight) & ~kLow;  // of the bytes that are not 0
    bits |= ((signs >> 7) * kGather >> 56) << i;
  }
  for (; i < count; ++i) bits |= std::uint64_t{entries[i] != std::byte{0}} << i;
  return bits;
}

// -inf for the keys of the span whose bit is 0; bit 0 is the first key's. False if there is none.
HWY_INLINE bool hide_scores(float* scores, Span keys, std::uint64_t visible) {
  static_assert(kBlockKeys == 64);
  if ((~visible << (kBlockKeys - (keys.last - keys.first))) == 0) return false;
  const F32 d;
  const hn::RebindToUnsigned<F32> du;
  const auto lane_bit = hn::Shl(hn::Set(du, 1), hn::Iota(du, 0));
  visible <<= keys.first;
  for (std::int64_t key = first_vector(keys); key < keys.last; key += kKeysAtOnce) {
    const auto bits = hn::Set(du, static_cast<std::uint32_t>(visible >> key));
    const auto is_visible = hn::RebindMask(d, hn::TestBit(bits, lane_bit));
    hn::StoreU(hn::IfThenElse(is_visible, hn::LoadU(d, scores + key), hn::Set(d, kMinusInfinity)), d, scores + key);
  }
  return true;
}

// Adds the entries [kBlockKeys] of the block, of which those of the span alone are read; -inf hides, whatever the
// score. False if all are 0.
HWY_INLINE bool add_entries(float* scores, Span keys, const std::byte* mask, std::int64_t entry) {
  const F32 d;
  const VecF32 hidden = hn::Set(d, kMinusInfinity);
  const auto* const entries = reinterpret_cast<const float*>(mask) + entry;  // aligned to f32: check_mask
  VecF32 any = hn::Zero(d);
  std::int64_t key = keys.first;
  for (; key + kKeysAtOnce <= keys.last; key += kKeysAtOnce) {
    const VecF32 bias = hn::LoadU(d, entries + key);
    const VecF32 sum = hn::Add(hn::LoadU(d, scores + key), bias);
    hn::StoreU(hn::IfThenElse(hn::Eq(bias, hidden), hidden, sum), d, scores + key);
    any = hn::Or(any, bias);
  }
  bool changes = !hn::AllTrue(d, hn::Eq(any, hn::Zero(d)));
  for (; key < keys.last; ++key) {
    scores[key] = entries[key] == kMinusInfinity ? kMinusInfinity : scores[key] + entries[key];
    changes = changes || entries[key] != 0;
  }
  return changes;
}

// `entry` is the mask entry of key 0 of the block. False if the mask changes nothing there.
HWY_INLINE bool mask_scores(float* scores, Span keys, MaskKind kind, const std::byte* mask, std::int64_t entry) {
  if (kind == MaskKind::kAdditive) return add_entries(scores, keys, mask, entry);
  const std::int64_t first = entry + keys.first, count = keys.last - keys.first;
  const bool is_bool = kind == MaskKind::kBool;
  return hide_scores(scores, keys,
                     is_bool ? entries_of_bytes(mask + first, count) : entries_of_bits(mask, first, count));
}

}  // namespace pagedkv::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PAGEDKV_KERNELS_LOGITS_INL_H_
