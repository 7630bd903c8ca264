// Histograms that events fill, and the engine's counters as they stand at a scrape.
#include "http/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <unistd.h>

#include <fstream>

namespace serving {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

MetricFamily family(const char* name, const char* help, MetricType type, double value) {
  prometheus::ClientMetric metric;
  if (type == MetricType::Gauge) {
    metric.gauge.value = value;
  } else {
    metric.counter.value = value;
  }
  return {name, help, type, {metric}};
}

double ratio(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

// The second number of statm is the resident set in pages of the system.
std::uint64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::uint64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

/// The engine's own numbers, read when somebody asks.
class EngineCollector final : public prometheus::Collectable {
 public:
  explicit EngineCollector(const Engine& engine) : engine_(engine) {}

  [[nodiscard]] std::vector<MetricFamily> Collect() const override {
    const EngineStats stats = engine_.stats();
    const pagedkv::PoolStats& pool = stats.cache.pool;
    std::vector<MetricFamily> families;
    const auto gauge = [&](const char* name, const char* help, auto value) {
      families.push_back(family(name, help, MetricType::Gauge, static_cast<double>(value)));
    };
    const auto counter = [&](const char* name, const char* help, auto value) {
      families.push_back(family(name, help, MetricType::Counter, static_cast<double>(value)));
    };
    gauge("pagedkv_pages_capacity", "Pages of the pool.", pool.capacity_pages);
    gauge("pagedkv_pages_used", "Pages that sequences hold.", pool.used_pages);
    gauge("pagedkv_pages_shared", "Pages that more than one sequence holds.", pool.shared_pages);
    gauge("pagedkv_pages_evictable", "Pages nobody holds, whose prefix can still be found.", pool.evictable_pages);
    gauge("pagedkv_pages_free", "Pages that hold nothing.", pool.free_pages);
    gauge("pagedkv_page_bytes", "Bytes of one page.", pool.page_bytes);
    gauge("pagedkv_committed_bytes", "Memory of the pool that the system has given.", pool.committed_bytes);
    counter("pagedkv_evictions_total", "Cached prefix pages taken for something else.", pool.evictions);
    gauge("pagedkv_open_sequences", "Sequences that hold pages.", stats.cache.open_sequences);
    counter("pagedkv_copied_pages_total", "Pages copied when a fork wrote first.", stats.cache.copied_pages);
    gauge("pagedkv_prefix_hit_ratio", "Prompt tokens found in the prefix cache, of all.",
          ratio(stats.cached_prompt_tokens, stats.prompt_tokens));
    counter("pagedkv_prompt_tokens_total", "Prompt tokens of admitted sequences.", stats.prompt_tokens);
    counter("pagedkv_cached_prompt_tokens_total", "Of those, found in the prefix cache.", stats.cached_prompt_tokens);
    counter("pagedkv_generated_tokens_total", "Tokens generated.", stats.generated_tokens);
    counter("pagedkv_drafted_tokens_total", "Tokens guessed by prompt lookup.", stats.drafted_tokens);
    counter("pagedkv_accepted_draft_tokens_total", "Of those, right.", stats.accepted_draft_tokens);
    gauge("pagedkv_requests_open", "Requests waiting and running.", stats.open_requests);
    gauge("pagedkv_sequences_waiting", "Sequences in the queue.", stats.scheduler.waiting);
    gauge("pagedkv_sequences_running", "Sequences that take part in steps.", stats.scheduler.running);
    counter("pagedkv_preemptions_total", "Sequences that gave up their pages to others.", stats.scheduler.preemptions);
    counter("pagedkv_steps_total", "Steps of the model.", stats.steps);
    counter("pagedkv_refused_steps_total", "Steps that the pool refused before somebody gave way.",
            stats.refused_steps);
    gauge("process_resident_memory_bytes", "Memory of this process that is in RAM.", resident_bytes());
    return families;
  }

 private:
  const Engine& engine_;
};

}  // namespace

struct Metrics::Impl {
  explicit Impl(const Engine& engine) : engine_numbers(std::make_shared<EngineCollector>(engine)) {}

  std::shared_ptr<EngineCollector> engine_numbers;
  prometheus::Registry registry;

  prometheus::Histogram& histogram(const char* name, const char* help,
                                   const prometheus::Histogram::BucketBoundaries& bounds) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add({}, bounds);
  }
  // Seconds.
  prometheus::Histogram& first_token =
      histogram("pagedkv_time_to_first_token_seconds", "From arrival to the first token.",
                {.005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60});
  prometheus::Histogram& output_token =
      histogram("pagedkv_time_per_output_token_seconds", "From one token to the next.",
                {.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5});
  prometheus::Histogram& request =
      histogram("pagedkv_request_seconds", "From arrival to the last token, of requests that came to their end.",
                {.01, .05, .1, .5, 1, 2, 5, 10, 30, 60, 120, 300});
  prometheus::Family<prometheus::Counter>& responses = prometheus::BuildCounter()
                                                           .Name("pagedkv_http_responses_total")
                                                           .Help("HTTP answers by status.")
                                                           .Register(registry);
  prometheus::Counter& disconnects = prometheus::BuildCounter()
                                         .Name("pagedkv_disconnects_total")
                                         .Help("Clients that went before their answer was complete.")
                                         .Register(registry)
                                         .Add({});
};

Metrics::Metrics(const Engine& engine) : impl_(std::make_unique<Impl>(engine)) {}
Metrics::~Metrics() = default;

void Metrics::observe_first_token(double seconds) { impl_->first_token.Observe(seconds); }
void Metrics::observe_output_token(double seconds) { impl_->output_token.Observe(seconds); }
void Metrics::observe_request(double seconds) { impl_->request.Observe(seconds); }
void Metrics::count_response(int status) { impl_->responses.Add({{"status", std::to_string(status)}}).Increment(); }
void Metrics::count_disconnect() { impl_->disconnects.Increment(); }

std::string Metrics::text() const {
  std::vector<MetricFamily> families = impl_->engine_numbers->Collect();
  for (MetricFamily& collected : impl_->registry.Collect()) families.push_back(std::move(collected));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace serving
