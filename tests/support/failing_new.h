// operator new of a test program, of which the n-th call of a thread fails. Needs support/failing_new.cc.
#pragma once

#include <cstdint>

namespace pagedkv::testing {

inline thread_local std::int64_t allocations_until_failure = -1;  // below 0: never
inline thread_local std::int64_t num_allocations = 0;

/// While it lives, allocation number `fail_at` of this thread (from 0) fails; -1 only counts.
class FailingNew {
 public:
  explicit FailingNew(std::int64_t fail_at) {
    num_allocations = 0;
    allocations_until_failure = fail_at;
  }
  FailingNew(const FailingNew&) = delete;
  FailingNew& operator=(const FailingNew&) = delete;
  ~FailingNew() { allocations_until_failure = -1; }
  [[nodiscard]] std::int64_t count() const { return num_allocations; }
};

}  // namespace pagedkv::testing
