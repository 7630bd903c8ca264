// Finds percentiles in the histogram.
#include "replay/latency.h"

namespace pagedkv::tool {

std::uint64_t LatencyHistogram::percentile_ns(double fraction) const {
  const double wanted = fraction * static_cast<double>(total_);
  std::uint64_t seen = 0;
  for (std::size_t bucket = 0; bucket < counts_.size(); ++bucket) {
    seen += counts_[bucket];
    if (counts_[bucket] == 0 || static_cast<double>(seen) < wanted) continue;
    if (bucket < kSteps) return bucket;
    const std::uint64_t order = bucket / kSteps, step = bucket % kSteps;
    return (std::uint64_t{1} << order) + ((step + 1) << (order - 4)) - 1;  // its upper end
  }
  return 0;
}

}  // namespace pagedkv::tool
