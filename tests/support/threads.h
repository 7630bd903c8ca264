// Eight threads that begin at a barrier, so that already their first calls meet.
#pragma once

#include <barrier>
#include <memory>
#include <thread>
#include <vector>

namespace pagedkv::testing {

inline constexpr int kNumThreads = 8;

/// Calls body(0) .. body(kNumThreads - 1), each in a thread of its own; they are joined when the result is destroyed.
template <class Body>
[[nodiscard]] std::vector<std::jthread> start_threads(const Body& body) {
  const auto start = std::make_shared<std::barrier<>>(kNumThreads);
  std::vector<std::jthread> threads;
  for (int thread = 0; thread < kNumThreads; ++thread) {
    threads.emplace_back([start, body, thread] {
      start->arrive_and_wait();
      body(thread);
    });
  }
  return threads;
}

/// The same, and waits for all of them.
template <class Body>
void run_threads(const Body& body) {
  const std::vector<std::jthread> threads = start_threads(body);
}

}  // namespace pagedkv::testing
