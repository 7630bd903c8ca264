// Times of repeated runs, and what is reported of them.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

namespace pagedkv::tool {

/// Seconds on the monotonic clock.
inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Seconds that `work` takes.
template <class Work>
double seconds_of(Work&& work) {
  const double begin = now_s();
  work();
  return now_s() - begin;
}

/// The value below which `fraction` of the samples lie (nearest rank); 0 without samples.
inline double quantile(std::vector<double> samples, double fraction) {
  if (samples.empty()) return 0;
  const auto rank = static_cast<std::size_t>(fraction * static_cast<double>(samples.size() - 1) + 0.5);
  std::nth_element(samples.begin(), samples.begin() + static_cast<std::ptrdiff_t>(rank), samples.end());
  return samples[rank];
}

inline double median(std::vector<double> samples) { return quantile(std::move(samples), 0.5); }

}  // namespace pagedkv::tool
