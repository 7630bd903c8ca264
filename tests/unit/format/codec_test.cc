// Tests of the vector codecs: every 16-bit pattern widens exactly on every target, by either way out of memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "unit/format/codec_test.cc"
#include "hwy/foreach_target.h"
//
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "format/codec-inl.h"
#include "format/convert.h"

HWY_BEFORE_NAMESPACE();
namespace pagedkv::format::HWY_NAMESPACE {
namespace {

template <class Codec>
void widen(const typename Codec::Stored* from, std::size_t count, float* loaded, float* halves) {
  constexpr std::size_t kLanes = hn::MaxLanes(F32());
  for (std::size_t i = 0; i < count; i += kLanes) hn::StoreU(Codec::load(from + i), F32(), loaded + i);
  for (std::size_t i = 0; i < count; i += 2 * kLanes) {
    const VecU32 units = hn::LoadU(U32(), reinterpret_cast<const std::uint32_t*>(from + i));
    float low[kLanes], high[kLanes];
    hn::StoreU(Codec::template split<0>(units), F32(), low);
    hn::StoreU(Codec::template split<1>(units), F32(), high);
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      halves[i + 2 * lane] = low[lane];
      halves[i + 2 * lane + 1] = high[lane];
    }
  }
}

}  // namespace

void widen_f16(const f16_t* from, std::size_t count, float* loaded, float* halves) {
  widen<CodecF16>(from, count, loaded, halves);
}
void widen_bf16(const bf16_t* from, std::size_t count, float* loaded, float* halves) {
  widen<CodecBf16>(from, count, loaded, halves);
}

}  // namespace pagedkv::format::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pagedkv::format {
namespace {

HWY_EXPORT(widen_f16);
HWY_EXPORT(widen_bf16);

// Calls `test` with each target of the machine in turn as the one that is dispatched to.
template <class Test>
void on_every_target(Test test) {
  std::size_t num_targets = 0;
  for (std::int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1, ++num_targets) {
    const std::int64_t target = left & -left;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    test();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  EXPECT_GE(num_targets, 2U);  // SCALAR is not the only one
}

template <class Stored, class Widen>
void expect_every_pattern_exact(Widen widen) {
  constexpr std::size_t kCount = 0x10000;
  std::vector<Stored> patterns(kCount);
  for (std::size_t bits = 0; bits < kCount; ++bits) patterns[bits].bits = static_cast<std::uint16_t>(bits);
  on_every_target([&] {
    std::vector<float> loaded(kCount), halves(kCount);
    widen(patterns.data(), kCount, loaded.data(), halves.data());
    for (std::size_t i = 0; i < kCount; ++i) {
      const float want = to_f32(patterns[i]);
      for (const float got : {loaded[i], halves[i]}) {
        ASSERT_TRUE(std::isnan(want) ? std::isnan(got)
                                     : std::bit_cast<std::uint32_t>(got) == std::bit_cast<std::uint32_t>(want))
            << "pattern " << i << ": " << got << " instead of " << want;
      }
    }
  });
}

TEST(Codec, EveryF16WidensToItsValueOnEveryTarget) {
  expect_every_pattern_exact<f16_t>([](auto... arguments) { HWY_DYNAMIC_DISPATCH(widen_f16)(arguments...); });
}

TEST(Codec, EveryBf16WidensToItsValueOnEveryTarget) {
  expect_every_pattern_exact<bf16_t>([](auto... arguments) { HWY_DYNAMIC_DISPATCH(widen_bf16)(arguments...); });
}

}  // namespace
}  // namespace pagedkv::format
#endif  // HWY_ONCE
