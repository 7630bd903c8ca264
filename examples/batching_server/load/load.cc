// pagedkv-load: replays a trace against a running server, in an open or a closed loop, and reports what clients felt.
#include <fmt/core.h>
#include <sys/resource.h>

#include <atomic>
#include <cmath>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "app/arguments.h"
#include "load/stream_client.h"
#include "load/trace.h"

namespace {

using namespace serving::load;

struct Options {
  std::string url = "http://127.0.0.1:8080", trace, json_path;
  bool open_loop = false;
  double speed = 1, rate = 50;
  std::uint32_t concurrency = 64;
  TraceScale scale;
  std::uint32_t requests = 1000;
};

/// Samples the server's gauges four times a second while the load runs.
class ServerWatch {
 public:
  explicit ServerWatch(std::string url) : url_(std::move(url)), thread_([this] { watch(); }) {}
  ServerWatch(const ServerWatch&) = delete;
  ServerWatch& operator=(const ServerWatch&) = delete;
  ~ServerWatch() { stop(); }

  void stop() {
    stopping_ = true;
    if (thread_.joinable()) thread_.join();
  }

  /// A metric's value now; NaN if there is none.
  static double value(const std::string& metrics, const std::string& name) {
    const std::size_t at = metrics.find("\n" + name + " ");
    return at == std::string::npos ? std::nan("") : std::strtod(metrics.c_str() + at + name.size() + 2, nullptr);
  }

  struct Sample {
    double seconds, used, running, waiting, resident_bytes;
  };
  /// Read it when the watch has stopped.
  [[nodiscard]] const std::vector<Sample>& samples() const { return samples_; }
  [[nodiscard]] double peak(double Sample::* member) const {
    double most = 0;
    for (const Sample& sample : samples_) most = std::max(most, sample.*member);
    return most;
  }
  [[nodiscard]] double mean(double Sample::* member) const {
    double sum = 0;
    for (const Sample& sample : samples_) sum += sample.*member;
    return samples_.empty() ? 0 : sum / static_cast<double>(samples_.size());
  }

 private:
  void watch() {
    while (!stopping_) {
      const std::string metrics = fetch(url_, "/metrics");
      if (!metrics.empty()) {
        samples_.push_back({steady_seconds() - start_, value(metrics, "pagedkv_pages_used"),
                            value(metrics, "pagedkv_sequences_running"), value(metrics, "pagedkv_sequences_waiting"),
                            value(metrics, "process_resident_memory_bytes")});
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(250));
    }
  }

  const std::string url_;
  const double start_ = steady_seconds();
  std::vector<Sample> samples_;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

std::string model_name(const std::string& url) {
  const auto models = nlohmann::json::parse(fetch(url, "/v1/models"), nullptr, false);
  if (models.is_discarded()) throw std::runtime_error("no server answers at " + url);
  return models["data"][0]["id"];
}

// Every worker takes the next request of the trace: when it is idle (closed loop), or when the request's time has come
// (open loop; then there must be more workers than requests in flight).
std::vector<Outcome> replay(const Options& options, const std::string& model, const std::vector<TraceRequest>& trace) {
  std::vector<Outcome> outcomes(trace.size());
  std::atomic<std::size_t> next = 0;
  const double start = steady_seconds();
  const auto work = [&] {
    for (std::size_t i; (i = next++) < trace.size();) {
      const double due = options.open_loop ? start + trace[i].arrival / options.speed : 0;
      const double early = due - steady_seconds();
      if (early > 0) std::this_thread::sleep_for(std::chrono::duration<double>(early));
      outcomes[i] = stream_completion(options.url, model, trace[i]);
      if (options.open_loop) outcomes[i].sent = std::max(due, start);  // Waiting for a worker counts as waiting.
    }
  };
  std::vector<std::thread> workers;
  for (std::uint32_t i = 0; i < std::min<std::size_t>(options.concurrency, trace.size()); ++i)
    workers.emplace_back(work);
  for (std::thread& worker : workers) worker.join();
  return outcomes;
}

double percentile(std::vector<double> values, double percent) {
  if (values.empty()) return 0;
  const auto rank = static_cast<std::ptrdiff_t>(std::ceil(percent / 100 * static_cast<double>(values.size())) - 1);
  const auto nth = values.begin() + std::clamp<std::ptrdiff_t>(rank, 0, std::ssize(values) - 1);
  std::ranges::nth_element(values, nth);
  return *nth;
}

nlohmann::json summarize(const std::vector<TraceRequest>& trace, const std::vector<Outcome>& outcomes, double seconds) {
  std::uint64_t complete = 0, refused = 0, lost = 0, prompt_tokens = 0, output_tokens = 0, short_outputs = 0;
  std::vector<double> first_token, per_token, whole;  // Milliseconds.
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    const Outcome& o = outcomes[i];
    refused += o.status == 429 || o.status == 503;
    lost += !o.is_complete && o.status != 429 && o.status != 503;
    if (!o.is_complete) continue;
    ++complete;
    prompt_tokens += trace[i].prompt.size();
    output_tokens += o.tokens;
    short_outputs += o.tokens != trace[i].output_tokens;
    first_token.push_back((o.first - o.sent) * 1e3);
    whole.push_back((o.last - o.sent) * 1e3);
    if (o.tokens > 1) per_token.push_back((o.last - o.first) * 1e3 / (o.tokens - 1));
  }
  const auto spread = [](const std::vector<double>& values) {
    return nlohmann::json{
        {"p50", percentile(values, 50)}, {"p90", percentile(values, 90)}, {"p99", percentile(values, 99)}};
  };
  return {{"requests", outcomes.size()},
          {"complete", complete},
          {"refused", refused},
          {"lost", lost},
          {"outputs_of_wrong_length", short_outputs},
          {"seconds", seconds},
          {"requests_per_second", static_cast<double>(complete) / seconds},
          {"prompt_tokens_per_second", static_cast<double>(prompt_tokens) / seconds},
          {"output_tokens_per_second", static_cast<double>(output_tokens) / seconds},
          {"time_to_first_token_ms", spread(first_token)},
          {"time_per_output_token_ms", spread(per_token)},
          {"request_ms", spread(whole)}};
}

void print(const nlohmann::json& r) {
  const auto row = [](const char* name, const nlohmann::json& v) {
    fmt::print("{:24} p50 {:9.1f}   p90 {:9.1f}   p99 {:9.1f}\n", name, v["p50"].get<double>(), v["p90"].get<double>(),
               v["p99"].get<double>());
  };
  fmt::print("requests                 {} complete, {} refused, {} lost, in {:.1f} s\n",
             r["complete"].get<std::uint64_t>(), r["refused"].get<std::uint64_t>(), r["lost"].get<std::uint64_t>(),
             r["seconds"].get<double>());
  fmt::print("throughput               {:.1f} requests/s, {:.0f} prompt tokens/s, {:.0f} output tokens/s\n",
             r["requests_per_second"].get<double>(), r["prompt_tokens_per_second"].get<double>(),
             r["output_tokens_per_second"].get<double>());
  row("time to first token, ms", r["time_to_first_token_ms"]);
  row("time per token, ms", r["time_per_output_token_ms"]);
  row("whole request, ms", r["request_ms"]);
  const nlohmann::json& s = r["server"];
  fmt::print(
      "pool                     {:.1f} % used on average, {:.1f} % at most; {:.0f} sequences at once, {:.0f} waiting\n",
      s["used_percent_mean"].get<double>(), s["used_percent_peak"].get<double>(), s["running_peak"].get<double>(),
      s["waiting_peak"].get<double>());
  fmt::print(
      "                         {:.0f} preemptions, {:.1f} % of prompt tokens cached, {:.0f} evictions, {:.0f} MiB "
      "resident\n",
      s["preemptions"].get<double>(), s["cached_percent"].get<double>(), s["evictions"].get<double>(),
      s["resident_peak_mib"].get<double>());
  fmt::print("afterwards               {:.0f} pages used, {:.0f} requests open\n", s["pages_used_after"].get<double>(),
             s["requests_open_after"].get<double>());
}

nlohmann::json server_part(const ServerWatch& watch, const std::string& before, const std::string& after) {
  const auto grown = [&](const char* name) {
    return ServerWatch::value(after, name) - ServerWatch::value(before, name);
  };
  const double capacity = ServerWatch::value(after, "pagedkv_pages_capacity");
  using Sample = ServerWatch::Sample;
  nlohmann::json timeline = nlohmann::json::array();
  for (const Sample& sample : watch.samples()) {
    timeline.push_back({{"seconds", sample.seconds},
                        {"used", sample.used},
                        {"running", sample.running},
                        {"waiting", sample.waiting},
                        {"resident_mib", sample.resident_bytes / (1 << 20)}});
  }
  return {{"pages", capacity},
          {"used_percent_mean", 100 * watch.mean(&Sample::used) / capacity},
          {"used_percent_peak", 100 * watch.peak(&Sample::used) / capacity},
          {"running_peak", watch.peak(&Sample::running)},
          {"running_mean", watch.mean(&Sample::running)},
          {"waiting_peak", watch.peak(&Sample::waiting)},
          {"preemptions", grown("pagedkv_preemptions_total")},
          {"evictions", grown("pagedkv_evictions_total")},
          {"cached_percent",
           100 * grown("pagedkv_cached_prompt_tokens_total") / std::max(grown("pagedkv_prompt_tokens_total"), 1.0)},
          {"resident_peak_mib", watch.peak(&Sample::resident_bytes) / (1 << 20)},
          {"resident_after_mib", ServerWatch::value(after, "process_resident_memory_bytes") / (1 << 20)},
          {"pages_used_after", ServerWatch::value(after, "pagedkv_pages_used")},
          {"timeline", timeline},
          {"requests_open_after", ServerWatch::value(after, "pagedkv_requests_open")}};
}

int run(const Options& options) {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);

  const std::string model = model_name(options.url);
  TraceScale scale = options.scale;
  scale.max_requests = options.requests;
  const std::vector<TraceRequest> trace =
      options.trace.empty() ? synthetic_trace(options.requests, options.rate, scale) : read_trace(options.trace, scale);
  const std::string before = fetch(options.url, "/metrics");
  ServerWatch watch(options.url);
  const double start = steady_seconds();
  const std::vector<Outcome> outcomes = replay(options, model, trace);
  const double seconds = steady_seconds() - start;
  watch.stop();
  nlohmann::json report = summarize(trace, outcomes, seconds);
  report["server"] = server_part(watch, before, fetch(options.url, "/metrics"));
  print(report);
  if (!options.json_path.empty()) std::ofstream(options.json_path) << report.dump(2) << "\n";
  const bool is_clean =
      report["lost"] == 0 && report["outputs_of_wrong_length"] == 0 && report["server"]["pages_used_after"] == 0.0;
  return is_clean ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("Replays a trace against a running server. Ends with 0 if nothing was lost and no page is left in use.",
               "pagedkv-load");
  app.add_option("--url", o.url, "of the server")->capture_default_str();
  app.add_option("--trace", o.trace, "Mooncake .jsonl or Azure .csv (default: synthetic requests)");
  app.add_flag("--open", o.open_loop, "send at the trace's times, whatever the server does (default: closed loop)");
  app.add_option("--speed", o.speed, "open loop: the trace's clock runs this much faster")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--rate", o.rate, "synthetic requests a second")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--concurrency", o.concurrency, "streams at once, at most")
      ->check(CLI::Range(1U, 16384U))
      ->capture_default_str();
  app.add_option("--requests", o.requests, "of the trace, from its beginning")
      ->check(CLI::Range(1U, 10'000'000U))
      ->capture_default_str();
  app.add_option("--prompt-scale", o.scale.prompt_scale, "prompt tokens for one of the trace")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--output-scale", o.scale.output_scale, "output tokens for one of the trace")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--max-prompt", o.scale.max_prompt, "tokens, after scaling")
      ->check(CLI::Range(8U, 1U << 20))
      ->capture_default_str();
  app.add_option("--max-output", o.scale.max_output, "tokens, after scaling")
      ->check(CLI::Range(1U, 1U << 20))
      ->capture_default_str();
  app.add_option("--json", o.json_path, "write the report there too");
  app.get_formatter()->column_width(28);
  if (const auto code = serving::read_arguments(app, argc, argv)) return *code;
  try {
    return run(o);
  } catch (const std::exception& error) {
    fmt::print(stderr, "pagedkv-load: {}\n", error.what());
    return 2;
  }
}
