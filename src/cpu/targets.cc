// The list of kernel targets: which were compiled in, which may run here, and which one is used.
#include "cpu/targets.h"

#include <hwy/targets.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>

#include "cpu/amx.h"

namespace pagedkv {
namespace {

#if HWY_ARCH_X86
constexpr std::size_t kNumTargets = 6;
constexpr std::array<cpu::Target, kNumTargets> kNumbers = {cpu::Target::kAmx,    cpu::Target::kAvx512Bf16,
                                                           cpu::Target::kAvx512, cpu::Target::kAvx2,
                                                           cpu::Target::kSse4,   cpu::Target::kScalar};

std::array<TargetInfo, kNumTargets> detect() noexcept {
  __builtin_cpu_init();
  const auto has = [](std::int64_t target) { return (hwy::SupportedTargets() & target) != 0; };
  return {{{"amx", "AMX tiles for bf16, AVX-512 for the rest", cpu::amx_usable()},
           {"avx512_bf16", "AVX-512 BF16 for prefill over bf16, AVX-512 for the rest",
            has(HWY_AVX3) && __builtin_cpu_supports("avx512bf16")},
           {"avx512", "AVX-512 F, BW, CD, DQ, VL", has(HWY_AVX3)},
           {"avx2", "AVX2, FMA, F16C, BMI2", has(HWY_AVX2)},
           {"sse4", "SSE4.2", has(HWY_SSE4)},
           {"scalar", "no vector instructions", true}}};
}
#elif HWY_ARCH_ARM
constexpr std::size_t kNumTargets = 2;
constexpr std::array<cpu::Target, kNumTargets> kNumbers = {cpu::Target::kNeon, cpu::Target::kScalar};

std::array<TargetInfo, kNumTargets> detect() noexcept {
  return {{{"neon", "Advanced SIMD, 128 bit", true}, {"scalar", "no vector instructions", true}}};
}
#else
constexpr std::size_t kNumTargets = 1;
constexpr std::array<cpu::Target, kNumTargets> kNumbers = {cpu::Target::kScalar};

std::array<TargetInfo, kNumTargets> detect() noexcept { return {{{"scalar", "no vector instructions", true}}}; }
#endif

const std::array<TargetInfo, kNumTargets>& all_targets() noexcept {
  static const std::array<TargetInfo, kNumTargets> list = detect();
  return list;
}

bool equal_ignoring_case(std::string_view a, std::string_view b) noexcept {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) == std::tolower(static_cast<unsigned char>(y));
  });
}

}  // namespace

std::span<const TargetInfo> targets() noexcept { return all_targets(); }

Result<const TargetInfo*> find_target(std::string_view name) noexcept {
  for (const TargetInfo& target : all_targets()) {
    if (!equal_ignoring_case(name, target.name)) continue;
    if (!target.available) return Error{Errc::kUnsupported, "this machine cannot run that kernel target"};
    return &target;
  }
  return Error{Errc::kNotFound, "no kernel target of that name was compiled in"};
}

Result<const TargetInfo*> active_target() noexcept {
  const char* const forced = std::getenv("PAGEDKV_TARGET");
  if (forced != nullptr && *forced != '\0') {
    auto found = find_target(forced);
    if (!found.has_value()) {
      return Error{Errc::kUnsupported, "PAGEDKV_TARGET names a kernel target that is unknown or cannot run here"};
    }
    return found;
  }
  const auto& list = all_targets();
  return &*std::find_if(list.begin(), list.end(), [](const TargetInfo& target) { return target.available; });
}

namespace cpu {

Target target_of(const TargetInfo& info) noexcept {
  const auto& list = all_targets();
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (&list[i] == &info) return kNumbers[i];
  }
  return Target::kScalar;
}

Result<const TargetInfo*> choose_target(std::string_view name) noexcept {
  auto found = name.empty() ? active_target() : find_target(name);
  if (!found) return Error{Errc::kUnsupported, found.error().what};
  return found;
}

}  // namespace cpu
}  // namespace pagedkv
