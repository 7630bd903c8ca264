// Conversions that need no handle, status codes and the last error.
#include "capi/convert.h"

#include "capi/handles.h"
#include "pagedkv/cpu.h"
#include "pagedkv/version.h"

namespace pagedkv::capi {
namespace {

thread_local const char* last_error = "";

}  // namespace

pagedkv_status report(Error error) noexcept {
  if (error.code != Errc::kOk) last_error = error.what;
  return static_cast<pagedkv_status>(error.code);
}

std::int32_t window_left_of(std::uint32_t window) noexcept {
  return window == 0 || window > INT32_MAX ? -1 : static_cast<std::int32_t>(window - 1);
}

pagedkv_attention_variant variant_of(const AttentionVariant& given) noexcept {
  return {.sm_scale = given.sm_scale,
          .logits_soft_cap = given.logits_soft_cap,
          .window = static_cast<std::uint32_t>(given.window_left) + 1,
          .sink_tokens = given.sink_tokens,
          .non_causal = given.causal ? 0 : 1,
          .sinks = given.sinks.data(),
          .num_sinks = given.sinks.size(),
          .alibi_slopes = given.alibi_slopes.data(),
          .num_alibi_slopes = given.alibi_slopes.size()};
}

std::uint64_t attention_flags_of(const AttentionVariant& given, bool cascade) noexcept {
  return (given.f16_as_bf16 ? std::uint64_t{PAGEDKV_F16_AS_BF16} : 0) | (cascade ? std::uint64_t{PAGEDKV_CASCADE} : 0);
}

AttentionVariant Checks::variant(const pagedkv_attention_variant& given, std::uint64_t attention_flags) noexcept {
  if ((attention_flags & ~std::uint64_t{PAGEDKV_F16_AS_BF16 | PAGEDKV_CASCADE}) != 0) {
    fail({Errc::kUnsupported, "attention_flags has a bit that this version of the library does not know"});
  }
  return {.sm_scale = given.sm_scale,
          .causal = given.non_causal == 0,
          .window_left = window_left_of(given.window),
          .sink_tokens = given.sink_tokens,
          .logits_soft_cap = given.logits_soft_cap,
          .sinks = span(given.sinks, given.num_sinks),
          .alibi_slopes = span(given.alibi_slopes, given.num_alibi_slopes),
          .f16_as_bf16 = (attention_flags & PAGEDKV_F16_AS_BF16) != 0};
}

KvView view_of(const pagedkv_kv_view& given) noexcept {
  return {given.k,
          given.v,
          given.k_page_stride,
          given.k_head_stride,
          given.k_token_stride,
          given.v_page_stride,
          given.v_head_stride,
          given.v_token_stride,
          given.num_pages};
}

pagedkv_kv_view view_of(const KvView& given) noexcept {
  return {given.k,
          given.v,
          given.k_page_stride,
          given.k_head_stride,
          given.k_token_stride,
          given.v_page_stride,
          given.v_head_stride,
          given.v_token_stride,
          given.num_pages};
}

pagedkv_pool_stats stats_of(const PoolStats& given) noexcept {
  pagedkv_pool_stats stats{};
  stats.page_bytes = given.page_bytes;
  stats.capacity_pages = given.capacity_pages;
  stats.used_pages = given.used_pages;
  stats.evictable_pages = given.evictable_pages;
  stats.free_pages = given.free_pages;
  stats.shared_pages = given.shared_pages;
  stats.committed_bytes = given.committed_bytes;
  stats.metadata_bytes = given.metadata_bytes;
  stats.peak_used_pages = given.peak_used_pages;
  stats.allocations = given.allocations;
  stats.failed_allocations = given.failed_allocations;
  stats.evictions = given.evictions;
  stats.huge_pages = given.huge_pages ? 1 : 0;
  return stats;
}

}  // namespace pagedkv::capi

using namespace pagedkv;
using namespace pagedkv::capi;

const char* pagedkv_status_name(pagedkv_status status) {
  if (status < PAGEDKV_OK || status > PAGEDKV_CORRUPT) return "unknown";
  return to_string(static_cast<Errc>(status));
}
const char* pagedkv_last_error(void) { return last_error; }
const char* pagedkv_version(void) { return version(); }

pagedkv_status pagedkv_get_cpu_info(pagedkv_cpu_info* info) {
  const CpuInfo& cpu = cpu_info();
  pagedkv_cpu_info out{};
  out.model = cpu.model;
  out.num_cpus = cpu.num_cpus;
  out.num_numa_nodes = cpu.num_numa_nodes;
  out.l1d_bytes = cpu.l1d_bytes;
  out.l2_bytes = cpu.l2_bytes;
  out.l3_bytes = cpu.l3_bytes;
  return report(write_sized(out, info));
}

size_t pagedkv_num_targets(void) { return targets().size(); }
pagedkv_status pagedkv_target_at(size_t index, const char** name, const char** description, int32_t* available) {
  if (index >= targets().size()) return report(Error{Errc::kInvalidArgument, "there are not so many targets"});
  if (name != nullptr) *name = targets()[index].name;
  if (description != nullptr) *description = targets()[index].description;
  if (available != nullptr) *available = targets()[index].available ? 1 : 0;
  return PAGEDKV_OK;
}
pagedkv_status pagedkv_find_target(pagedkv_bytes name, size_t* index) {
  if (index == nullptr) return report(kNullArgument);
  Checks checks;
  const std::string_view text = checks.text(name);
  if (checks.failed()) return report(checks.error());
  const Result<const TargetInfo*> found = find_target(text);
  if (!found) return report(found.error());
  *index = static_cast<size_t>(*found - targets().data());
  return PAGEDKV_OK;
}
pagedkv_status pagedkv_active_target(const char** name) {
  if (name == nullptr) return report(kNullArgument);
  const Result<const TargetInfo*> target = active_target();
  if (!target) return report(target.error());
  *name = (*target)->name;
  return PAGEDKV_OK;
}
