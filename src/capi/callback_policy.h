// An eviction policy made of a caller's C functions.
//
// Layer: capi.
#pragma once

#include <cstdint>

#include "pagedkv/c/pagedkv.h"
#include "pagedkv/prefix_cache.h"
#include "pagedkv/result.h"
#include "pagedkv/types.h"

namespace pagedkv::capi {

/// Under the pool's lock. What a choice is worth is checked by its caller.
class CallbackPolicy final : public EvictionPolicy {
 public:
  /// `functions` has on_evictable, on_withdrawn and choose.
  explicit CallbackPolicy(const pagedkv_eviction_policy& functions) noexcept : functions_(functions) {}
  CallbackPolicy(const CallbackPolicy&) = delete;
  CallbackPolicy& operator=(const CallbackPolicy&) = delete;
  ~CallbackPolicy() override {
    if (owns_user_ && functions_.destroy != nullptr) functions_.destroy(functions_.user);
  }
  /// From now on the policy destroys what `user` points to.
  void take_user() noexcept { owns_user_ = true; }

  Result<void> attach(std::uint64_t num_pages) noexcept override {
    if (functions_.attach == nullptr || functions_.attach(functions_.user, num_pages) == PAGEDKV_OK) return {};
    return Error{Errc::kInvalidArgument, "the eviction policy refused to be attached"};
  }
  void on_published(const PublishedPage& page) noexcept override {
    if (functions_.on_published == nullptr) return;
    functions_.on_published(functions_.user, to_index(page.page), page.hash, page.index);
  }
  void on_hit(PageId page) noexcept override {
    if (functions_.on_hit != nullptr) functions_.on_hit(functions_.user, to_index(page));
  }
  void on_evictable(PageId page) noexcept override { functions_.on_evictable(functions_.user, to_index(page)); }
  void on_withdrawn(PageId page) noexcept override { functions_.on_withdrawn(functions_.user, to_index(page)); }
  PageId choose() noexcept override { return PageId{functions_.choose(functions_.user)}; }
  [[nodiscard]] const char* name() const noexcept override { return "callbacks"; }

 private:
  pagedkv_eviction_policy functions_;
  bool owns_user_ = false;
};

}  // namespace pagedkv::capi
