// The one parallel loop of this room, over oneTBB; tells the thread sanitizer how work is handed over.
//
// oneTBB comes compiled without the sanitizer, which then cannot see that a task begins after the call that spawned it
// and ends before that call returns. HandOver says so; what happens inside oneTBB's own tasks is in tests/tsan.supp.
#pragma once

#include <tbb/parallel_for.h>

#include <cstddef>

#if defined(__SANITIZE_THREAD__)
#define PAGEDKV_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PAGEDKV_TSAN 1
#endif
#endif

#ifdef PAGEDKV_TSAN
#include <sanitizer/tsan_interface.h>
#define PAGEDKV_UNSEEN __attribute__((no_sanitize("thread")))
#else
#define PAGEDKV_UNSEEN
#endif

namespace pagedkv::attention {

/// What one thread gave, another may take: an edge of happens-before that only the sanitizer needs to be told of.
class HandOver {
 public:
#ifdef PAGEDKV_TSAN
  void give() noexcept { __tsan_release(this); }
  void take() noexcept { __tsan_acquire(this); }
#else
  void give() noexcept {}
  void take() noexcept {}
#endif
};

template <class Body>
struct IndexTask {
  const Body* body;
  HandOver* hand_over;

  PAGEDKV_UNSEEN void operator()(std::size_t index) const noexcept {
    hand_over->take();
    (*body)(index);
    hand_over->give();
  }
};

/// Calls body(index) for 0 .. count-1, at once where the caller's arena has threads. May throw what oneTBB throws when
/// it has no memory for tasks. A cancelled task group leaves indices out: the body must count what it did.
template <class Body>
void parallel_indices(std::size_t count, const Body& body) {
  HandOver hand_over;
  hand_over.give();
  tbb::parallel_for(std::size_t{0}, count, IndexTask<Body>{&body, &hand_over}, tbb::simple_partitioner());
  hand_over.take();
}

}  // namespace pagedkv::attention
