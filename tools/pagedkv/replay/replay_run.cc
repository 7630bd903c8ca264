// Runs one policy over a source and turns its sums into a report.
#include "replay/replay_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "progress.h"
#include "replay/arena.h"
#include "replay/latency.h"
#include "tool.h"

namespace pagedkv::tool {
namespace {

/// Reading the resident size costs microseconds; a step may take less.
constexpr std::uint64_t kStepsPerResidentSample = 16;

double ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

/// Watches the steps of one replay and fills in what they show.
class Observer {
 public:
  Observer(ReplayReport& report, const KvMemory& memory, const SourceSummary& summary, std::uint64_t resident_before)
      : report_(report),
        memory_(memory),
        half_of_requests_(summary.requests / 2),
        resident_before_(resident_before),
        progress_(fmt::format("{:16}", report.policy.label()), summary.requests) {}

  void operator()(const ReplayCounts& counts, const MemoryUsage& usage) {
    progress_.update(counts.completed + counts.rejected);
    report_.unusable_slot_steps += static_cast<double>(usage.unusable_slots);
    report_.peak_metadata_bytes = std::max(report_.peak_metadata_bytes, usage.metadata_bytes);
    if (report_.memory.slot_bytes != 0 && counts.steps % kStepsPerResidentSample == 0) {
      const std::uint64_t resident = resident_bytes();
      resident_ = resident > resident_before_ ? resident - resident_before_ : 0;
      report_.resident_byte_samples += static_cast<double>(resident_);
      report_.held_byte_samples += static_cast<double>(usage.held_tokens * report_.memory.slot_bytes);
    }
    if (counts.steps % stride_ == 0) sample(counts, usage);
    if (report_.layout.empty() && counts.completed >= half_of_requests_) report_.layout = memory_.layout();
  }

 private:
  void sample(const ReplayCounts& counts, const MemoryUsage& usage) {
    const std::uint64_t sequences = counts.sequence_steps - sequence_steps_;
    report_.samples.push_back(
        {counts.virtual_s, sequences / (counts.steps - steps_), usage.reserved_slots, usage.held_tokens, resident_});
    sequence_steps_ = counts.sequence_steps;
    steps_ = counts.steps;
    if (report_.samples.size() < ReplayReport::kMaxSamples) return;
    for (std::size_t i = 0; i * 2 + 1 < report_.samples.size(); ++i) report_.samples[i] = report_.samples[i * 2 + 1];
    report_.samples.resize(report_.samples.size() / 2);
    stride_ *= 2;
  }

  ReplayReport& report_;
  const KvMemory& memory_;
  std::uint64_t half_of_requests_;
  std::uint64_t resident_before_, resident_ = 0;
  std::uint64_t stride_ = 1, steps_ = 0, sequence_steps_ = 0;
  Progress progress_;
};

}  // namespace

double ReplayReport::mean_sequences() const {
  return ratio(static_cast<double>(counts.sequence_steps), static_cast<double>(counts.steps));
}
double ReplayReport::tail_waste() const {
  return ratio(counts.reserved_slot_steps - counts.token_steps, counts.reserved_slot_steps);
}
double ReplayReport::utilization() const {
  return ratio(counts.token_steps, static_cast<double>(memory.capacity_tokens) * static_cast<double>(counts.steps));
}
double ReplayReport::external_fragmentation() const {
  return ratio(unusable_slot_steps, static_cast<double>(memory.capacity_tokens) * static_cast<double>(counts.steps));
}
double ReplayReport::os_scatter() const { return ratio(resident_byte_samples, held_byte_samples); }
double ReplayReport::metadata_fraction() const {
  return ratio(static_cast<double>(peak_metadata_bytes),
               static_cast<double>(memory.capacity_tokens) * static_cast<double>(memory.shape.bytes_per_token()));
}
double ReplayReport::prefix_hit_rate() const {
  return ratio(static_cast<double>(counts.cached_tokens), static_cast<double>(counts.prompt_tokens));
}
double ReplayReport::prefix_ideal_rate() const {
  return ratio(static_cast<double>(ideal.tokens), static_cast<double>(ideal.prompt_tokens));
}
double ReplayReport::tokens_per_s() const { return ratio(static_cast<double>(counts.computed_tokens), wall_s); }
double ReplayReport::attention_gb_per_s() const {
  return ratio(static_cast<double>(totals.attention_kv_bytes), totals.attention_s) * 1e-9;
}

Json ReplayReport::to_json() const {
  const auto if_known = [this](auto value) { return knows_overhead() ? Json(value) : Json(nullptr); };
  Json json = {{"policy", policy.name},
               {"page_size", policy.page_size},
               {"capacity_tokens", memory.capacity_tokens},
               {"max_seq_len", memory.max_seq_len},
               {"requests", counts.requests},
               {"completed", counts.completed},
               {"rejected", counts.rejected},
               {"steps", counts.steps},
               {"peak_concurrent_sequences", counts.peak_sequences},
               {"mean_concurrent_sequences", mean_sequences()},
               {"tail_waste", tail_waste()},
               {"utilization", utilization()},
               {"external_fragmentation", if_known(external_fragmentation())},
               {"bytes_copied", totals.copied_tokens * memory.shape.bytes_per_token()},
               {"preemptions", counts.preemptions},
               {"peak_tokens", counts.peak_tokens},
               {"prompt_tokens", counts.prompt_tokens},
               {"output_tokens", counts.output_tokens},
               {"computed_tokens", counts.computed_tokens},
               {"recomputed_tokens", counts.recomputed_tokens},
               {"allocation_ns_p50", latency_p50_ns},
               {"allocation_ns_p99", latency_p99_ns},
               {"allocation_ns_p999", latency_p999_ns},
               {"metadata_bytes", if_known(peak_metadata_bytes)},
               {"metadata_fraction", if_known(metadata_fraction())},
               {"virtual_s", counts.virtual_s},
               {"wall_s", wall_s}};
  if (memory.slot_bytes != 0) {
    json["slot_bytes"] = memory.slot_bytes;
    json["os_scatter"] = os_scatter();
  }
  if (memory.prefix_cache) {
    json["prefix_hit_tokens"] = counts.cached_tokens;
    json["prefix_hit_rate"] = prefix_hit_rate();
    json["prefix_ideal_tokens"] = ideal.tokens;
    json["prefix_ideal_rate"] = prefix_ideal_rate();
    json["prefix_ideal_last_tokens"] = ideal.last_tokens;
    json["evictions"] = pages.evictions;
    json["pages_used"] = pages.used;
    json["pages_evictable"] = pages.evictable;
    json["pages_free"] = pages.free;
  }
  if (memory.attention) {
    json["tokens_per_s"] = tokens_per_s();
    json["attention_gb_per_s"] = attention_gb_per_s();
    json["attention_s"] = totals.attention_s;
    json["output_checksum"] = fmt::format("{:016x}", totals.output_checksum);
  }
  return json;
}

ReplayReport replay(const ReplayOptions& options, const Policy& policy, const SourceSummary& summary) {
  ReplayReport report;
  report.policy = policy;
  report.memory = options.memory;
  report.memory.prefix_cache = options.memory.prefix_cache && policy.kind == PolicyKind::kPaged;
  report.ideal = options.ideal;
  if (report.memory.max_seq_len == 0) report.memory.max_seq_len = std::max<std::uint64_t>(1, summary.longest_tokens);
  const std::uint64_t resident_before = resident_bytes();
  TimedMemory memory(create_memory(policy, report.memory));
  Arrivals arrivals(options.open_source(), options.arrivals, options.scheduler.max_seqs);
  Scheduler scheduler(options.scheduler, arrivals, memory);
  Observer observer(report, memory, summary, resident_before);

  const auto begun = std::chrono::steady_clock::now();
  try {
    report.counts = scheduler.run(std::ref(observer));
  } catch (const std::logic_error& error) {
    throw CheckFailed(fmt::format("replay with policy {}: {}", policy.label(), error.what()));
  }
  report.wall_s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  report.totals = memory.totals();
  report.pages = memory.page_counts();
  report.latency_p50_ns = memory.latency().percentile_ns(0.5);
  report.latency_p99_ns = memory.latency().percentile_ns(0.99);
  report.latency_p999_ns = memory.latency().percentile_ns(0.999);
  if (report.counts.requests != summary.requests) throw CheckFailed("the replay did not see every request");
  return report;
}

}  // namespace pagedkv::tool
