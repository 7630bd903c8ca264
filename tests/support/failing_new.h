// operator new of a test program, of which the n-th call of a thread fails. Needs support/failing_new.cc.
#pragma once

#include <cstdint>

namespace pagedkv::testing {

inline thread_local std::int64_t allocations_until_failure = -1;  // below 0: never
inline thread_local std::int64_t num_allocations = 0;
inline thread_local bool failures_last = false;  // whether all allocations behind that one fail too

/// While it lives, allocation number `fail_at` of this thread (from 0) fails; -1 only counts.
class FailingNew {
 public:
  explicit FailingNew(std::int64_t fail_at, bool and_all_later = false) {
    num_allocations = 0;
    allocations_until_failure = fail_at;
    failures_last = and_all_later;
  }
  FailingNew(const FailingNew&) = delete;
  FailingNew& operator=(const FailingNew&) = delete;
  ~FailingNew() {
    allocations_until_failure = -1;
    failures_last = false;
  }
  [[nodiscard]] std::int64_t count() const { return num_allocations; }
};

}  // namespace pagedkv::testing
