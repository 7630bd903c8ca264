// `pagedkv bench attention`: the kernel beside the limit that it runs into, in one run.
#include "pagedkv/attention.h"

#include <fmt/format.h>
#include <tbb/global_control.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <span>
#include <thread>
#include <vector>

#include "bench/check.h"
#include "bench/limits.h"
#include "bench/parts.h"
#include "bench/samples.h"
#include "bench/workload.h"
#include "json_file.h"
#include "pagedkv/cpu.h"
#include "table.h"

namespace pagedkv::tool {
namespace {

enum class Phase : std::uint8_t { kDecode, kPrefill };

struct Options {
  Phase phase = Phase::kDecode;
  AttentionConfig config{.num_q_heads = 32, .num_kv_heads = 8, .head_dim = 128};
  std::int64_t batch = 8, context = 4096, query_len = 0;  // query_len 0: 1 in decode, 512 in prefill
  std::string contexts;
  std::int64_t shared_prefix = 0;
  int q_dtype = -1;  // -1: as the pages
  MaskKind mask = MaskKind::kNone;
  bool sinks = false, alibi = false, values_in_keys = false, small_os_pages = false;
  std::string page_order = "random", target, json;
  int threads = 0;  // 0: all CPUs
  double seconds = 3;
  std::uint64_t working_set_mib = 1024, seed = 1;
};

/// Samples of what ran in turn, one of each in every round.
struct Samples {
  std::vector<double> kernel_s, read_s, peak_gflop_per_s, plan_s;
  std::vector<double> fraction_of_bandwidth, fraction_of_peak;  ///< Of neighbours in time.
  std::vector<double> unshared_s, gain_of_sharing;              ///< With --cascade; the gain is of neighbours in time.
};

/// "65536,512x31" -> one 65536 and 31 times 512.
std::vector<std::int64_t> parse_contexts(const Options& options) {
  if (options.contexts.empty())
    return std::vector<std::int64_t>(static_cast<std::size_t>(options.batch), options.context);
  std::vector<std::int64_t> contexts;
  for (const std::string& item : CLI::detail::split(options.contexts, ',')) {
    long long length = 0, count = 1;
    char end = '\0';
    const int fields = std::sscanf(item.c_str(), "%lldx%lld%c", &length, &count, &end);
    const bool plain = fields == 1 && item.find_first_not_of("0123456789") == std::string::npos;
    if ((fields != 2 && !plain) || length < 1 || length > (1 << 30) || count < 1 || count > 65'536) {
      throw BadInput("--contexts: '" + item + "' is not LENGTH or LENGTHxCOUNT");
    }
    contexts.insert(contexts.end(), static_cast<std::size_t>(count), length);
  }
  return contexts;
}

/// What parse_contexts reads as these lengths: "65536x1,512x31".
std::string format_contexts(const std::vector<std::int64_t>& contexts) {
  std::string text;
  for (auto begin = contexts.begin(); begin != contexts.end();) {
    const auto end = std::find_if(begin, contexts.end(), [&](std::int64_t length) { return length != *begin; });
    text += fmt::format("{}{}x{}", text.empty() ? "" : ",", *begin, end - begin);
    begin = end;
  }
  return text;
}

const char* to_string(MaskKind mask) {
  switch (mask) {
    case MaskKind::kBool: return "bool";
    case MaskKind::kAdditive: return "additive";
    case MaskKind::kBits: return "bits";
    case MaskKind::kNone: break;
  }
  return "none";
}

/// One learned logit or one slope a query head.
struct HeadConstants {
  std::vector<float> sinks, alibi_slopes;
};

HeadConstants make_head_constants(const Options& options) {
  HeadConstants constants;
  const std::uint32_t heads = options.config.num_q_heads;
  for (std::uint32_t h = 0; h < heads; ++h) {
    if (options.sinks) constants.sinks.push_back(static_cast<float>(h % 7) - 3.0F);
    if (options.alibi) {
      constants.alibi_slopes.push_back(std::exp2(-8.0F * static_cast<float>(h + 1) / static_cast<float>(heads)));
    }
  }
  return constants;
}

WorkloadShape make_shape(const Options& options, const HeadConstants& constants) {
  WorkloadShape shape{.config = options.config, .contexts = parse_contexts(options)};
  shape.config.variant.sinks = constants.sinks;
  shape.config.variant.alibi_slopes = constants.alibi_slopes;
  shape.config.target = options.target;
  shape.query_len = options.query_len != 0 ? options.query_len : options.phase == Phase::kDecode ? 1 : 512;
  shape.shared_prefix = options.shared_prefix / options.config.page_size * options.config.page_size;
  shape.values_in_keys = options.values_in_keys;
  shape.mask = options.mask;
  shape.random_order = options.page_order == "random";
  shape.huge_pages = options.small_os_pages ? HugePages::kNever : HugePages::kTransparent;
  shape.q_dtype = options.q_dtype < 0 ? options.config.kv_dtype : static_cast<DType>(options.q_dtype);
  shape.working_set_bytes = options.working_set_mib << 20;
  shape.seed = options.seed;
  const std::int64_t shortest = *std::min_element(shape.contexts.begin(), shape.contexts.end());
  if (shape.query_len > shortest) throw BadInput("--query-len exceeds the context");
  if (shape.shared_prefix > shortest - shape.query_len) throw BadInput("--shared-prefix reaches into the new tokens");
  if (options.shared_prefix != 0 && shape.shared_prefix == 0) {
    throw BadInput(fmt::format("--shared-prefix must hold at least one page of {} tokens", options.config.page_size));
  }
  if (options.config.cascade && shape.shared_prefix == 0) throw BadInput("--cascade needs --shared-prefix");
  if (shape.values_in_keys && options.config.v_head_dim > options.config.head_dim) {
    throw BadInput("--values-in-keys needs --v-head-dim of at most --head-dim");
  }
  const double tokens = std::accumulate(shape.contexts.begin(), shape.contexts.end(), 0.0);
  if (tokens > static_cast<double>(1 << 30)) throw BadInput("more than 2^30 tokens in all");
  return shape;
}

/// Throws BadInput if the library refuses the shape, before any memory is filled for it.
void check_config(const AttentionConfig& config) {
  const std::int32_t qo_indptr[] = {0, 1}, block_table[] = {0}, seq_lens[] = {1};
  const AttentionBatch one_token{
      .qo_indptr = qo_indptr, .block_table = block_table, .block_table_stride = 1, .seq_lens = seq_lens};
  value_or_bad_input(AttentionPlan::workspace_bytes(config, one_token), "the shape");
}

/// The same batch with pages of its own for every sequence: what --cascade is compared with.
class Unshared {
 public:
  explicit Unshared(WorkloadShape shape) : workload_(without_sharing(shape)) {
    for (std::size_t copy = 0; copy < workload_.num_copies(); ++copy) {
      plans_.push_back(value_or_bad_input(AttentionPlan::create(shape.config, workload_.batch(copy)), "planning"));
    }
  }
  void run(std::size_t round) {
    value_or_bad_input(
        plans_[round % plans_.size()].run(workload_.view(), workload_.q(), workload_.out(), workload_.lse()),
        "attending");
  }

 private:
  static const WorkloadShape& without_sharing(WorkloadShape& shape) {
    shape.config.cascade = false;
    shape.shared_prefix = 0;
    return shape;
  }

  Workload workload_;
  std::vector<AttentionPlan> plans_;  ///< [copy].
};

class AttentionBench {
 public:
  AttentionBench(const Options& options, const WorkloadShape& shape)
      : shape_(shape),
        seconds_(options.seconds),
        threads_(options.threads),
        prefill_(options.phase == Phase::kPrefill),
        workload_(shape) {
    for (std::size_t copy = 0; copy < workload_.num_copies(); ++copy) plans_.push_back(make_plan(copy));
    if (shape.config.cascade) unshared_ = std::make_unique<Unshared>(shape);
    bytes_ = plans_[0].kv_bytes(workload_.view());
    const bool rounds_to_bf16 = shape.config.kv_dtype == DType::f16 && shape.config.variant.f16_as_bf16;
    unit_ = peak_unit_of(plans_[0].target(), rounds_to_bf16 ? DType::bf16 : shape.config.kv_dtype);
  }

  /// Relative error against the oracle (bench/check.h).
  CheckedError check() {
    run(0);
    return check_against_oracle(shape_.config, workload_, shape_.seed);
  }

  /// Kernel and limits in turn until the time is up, each on memory that no cache holds.
  Samples measure() {
    constexpr std::size_t kWarmUpRounds = 2, kMinRounds = 11, kPlans = 31;
    Samples samples;
    for (std::size_t i = 0; i < kPlans; ++i) {
      samples.plan_s.push_back(seconds_of([&] { make_plan(i % plans_.size()); }));
    }
    const double begin = now_s();
    for (std::size_t round = 0; round < kMaxCopies; ++round) {
      if (round >= kWarmUpRounds + kMinRounds && now_s() - begin > seconds_) break;
      const double kernel_s = seconds_of([&] { run(round % plans_.size()); });
      const double read_s = seconds_of([&] { read(round % plans_.size()); });
      double peak = 0;
      if (prefill_) {
        double flops = 0;
        const double peak_s = seconds_of([&] { flops = run_peak(unit_, threads_); });
        peak = flops / peak_s * 1e-9;
      }
      const double unshared_s = unshared_ != nullptr ? seconds_of([&] { unshared_->run(round); }) : 0;
      if (round < kWarmUpRounds) continue;
      if (unshared_ != nullptr) {
        samples.unshared_s.push_back(unshared_s);
        samples.gain_of_sharing.push_back(unshared_s / kernel_s);
      }
      samples.kernel_s.push_back(kernel_s);
      samples.read_s.push_back(read_s);
      samples.fraction_of_bandwidth.push_back(read_s / kernel_s);
      if (!prefill_) continue;
      samples.peak_gflop_per_s.push_back(peak);
      samples.fraction_of_peak.push_back(flops() / kernel_s * 1e-9 / peak);
    }
    return samples;
  }

  [[nodiscard]] double bytes() const { return static_cast<double>(bytes_); }
  [[nodiscard]] double flops() const { return plans_[0].flops(); }
  [[nodiscard]] const char* target() const { return plans_[0].target(); }
  [[nodiscard]] PeakUnit unit() const { return unit_; }
  [[nodiscard]] const Workload& workload() const { return workload_; }

 private:
  AttentionPlan make_plan(std::size_t copy) {
    return value_or_bad_input(AttentionPlan::create(shape_.config, workload_.batch(copy)), "planning");
  }
  void run(std::size_t copy) {
    value_or_bad_input(plans_[copy].run(workload_.view(), workload_.q(), workload_.out(), workload_.lse()),
                       "attending");
  }
  /// As many bytes as the kernel read, from the part of the contiguous memory that was read longest ago. They may be
  /// several times the memory: pages that sequences share were read once for each of them.
  void read(std::size_t copy) {
    const std::span<const std::byte> memory = workload_.contiguous();
    std::size_t at = memory.size() / plans_.size() * copy / 64 * 64;
    for (std::uint64_t left = bytes_; left > 0; at = 0) {
      const std::size_t bytes = std::min<std::size_t>(left, memory.size() - at);
      checksum_ += read_contiguous(memory.subspan(at, bytes));
      left -= bytes;
    }
  }

  WorkloadShape shape_;
  double seconds_;
  int threads_;
  bool prefill_;
  Workload workload_;
  std::vector<AttentionPlan> plans_;    ///< [copy].
  std::unique_ptr<Unshared> unshared_;  ///< With --cascade.
  std::uint64_t bytes_ = 0;
  PeakUnit unit_ = PeakUnit::kMulAdd128;
  std::uint64_t checksum_ = 0;
};

/// What was asked for: enough to run the same again.
Json shape_to_json(const Options& options, const WorkloadShape& shape, const AttentionBench& bench) {
  const AttentionConfig& config = shape.config;
  return {{"phase", options.phase == Phase::kDecode ? "decode" : "prefill"},
          {"target", bench.target()},
          {"threads", options.threads},
          {"q_heads", config.num_q_heads},
          {"kv_heads", config.num_kv_heads},
          {"head_dim", config.head_dim},
          {"v_head_dim", config.v_head_dim == 0 ? config.head_dim : config.v_head_dim},
          {"batch", shape.contexts.size()},
          {"context", *std::max_element(shape.contexts.begin(), shape.contexts.end())},
          {"contexts", format_contexts(shape.contexts)},
          {"query_len", shape.query_len},
          {"shared_prefix", shape.shared_prefix},
          {"cascade", config.cascade},
          {"dtype", to_string(config.kv_dtype)},
          {"q_dtype", to_string(shape.q_dtype)},
          {"f16_as_bf16", config.kv_dtype == DType::f16 && config.variant.f16_as_bf16},
          {"causal", config.variant.causal},
          {"window_left", config.variant.window_left},
          {"soft_cap", config.variant.logits_soft_cap},
          {"sinks", options.sinks},
          {"alibi", options.alibi},
          {"mask", to_string(shape.mask)},
          {"values_in_keys", shape.values_in_keys},
          {"page_size", config.page_size},
          {"page_order", options.page_order},
          {"huge_pages", bench.workload().huge_pages()},
          {"working_set_mib", options.working_set_mib},
          {"copies", bench.workload().num_copies()},
          {"seed", shape.seed}};
}

Json to_json(const Options& options, const WorkloadShape& shape, const AttentionBench& bench, const Samples& samples,
             const CheckedError& error) {
  const double kernel_s = median(samples.kernel_s), read_s = median(samples.read_s);
  Json json = shape_to_json(options, shape, bench);
  json.update({{"samples", samples.kernel_s.size()},
               {"ms_median", kernel_s * 1e3},
               {"ms_p10", quantile(samples.kernel_s, 0.1) * 1e3},
               {"ms_p90", quantile(samples.kernel_s, 0.9) * 1e3},
               {"plan_us_median", median(samples.plan_s) * 1e6},
               {"kv_bytes", bench.bytes()},
               {"gb_per_s", bench.bytes() / kernel_s * 1e-9},
               {"gflop_per_s", bench.flops() / kernel_s * 1e-9},
               {"read_bandwidth_gb_per_s", bench.bytes() / read_s * 1e-9},
               {"read_bandwidth_gb_per_s_p10", bench.bytes() / quantile(samples.read_s, 0.9) * 1e-9},
               {"read_bandwidth_gb_per_s_p90", bench.bytes() / quantile(samples.read_s, 0.1) * 1e-9},
               {"fraction_of_bandwidth", median(samples.fraction_of_bandwidth)},
               {"relative_error", error.relative},
               {"relative_error_allowed", error.allowed},
               {"rows_checked", error.rows}});
  if (shape.config.cascade) {
    json["ms_without_sharing"] = median(samples.unshared_s) * 1e3;
    json["gain_of_sharing"] = median(samples.gain_of_sharing);
  }
  if (options.phase == Phase::kPrefill) {
    json["peak_unit"] = to_string(bench.unit());
    json["peak_gflop_per_s"] = median(samples.peak_gflop_per_s);
    json["fraction_of_peak"] = median(samples.fraction_of_peak);
  }
  return json;
}

/// What sets a run apart from plain causal attention, in words; "" if nothing does.
std::string variant_of(const Json& json) {
  std::vector<std::string> parts;
  const auto add = [&parts](bool differs, std::string what) {
    if (differs) parts.push_back(std::move(what));
  };
  add(!json["causal"].get<bool>(), "not causal");
  add(json["window_left"] != -1, fmt::format("window of {} keys to the left", json["window_left"].get<int>()));
  add(json["soft_cap"] != 0, fmt::format("soft cap {:g}", json["soft_cap"].get<double>()));
  add(json["sinks"].get<bool>(), "sinks");
  add(json["alibi"].get<bool>(), "ALiBi");
  add(json["mask"] != "none", "mask " + json["mask"].get<std::string>());
  add(json["v_head_dim"] != json["head_dim"], fmt::format("values of {}", json["v_head_dim"].get<int>()));
  add(json["values_in_keys"].get<bool>(), "values in keys");
  add(json["q_dtype"] != json["dtype"], "queries in " + json["q_dtype"].get<std::string>());
  add(json["shared_prefix"] != 0, fmt::format("{} tokens shared", json["shared_prefix"].get<long>()));
  add(json["cascade"].get<bool>(), "cascade");
  return fmt::format("{}", fmt::join(parts, ", "));
}

void print_text(const Json& json) {
  const auto number = [&json](const char* key) { return json[key].get<double>(); };
  const auto text = [&json](const char* key) { return json[key].get<std::string>(); };
  fmt::print("{} {}{}, target {}, {} threads: {}/{} heads x {}, batch {}, context {}, queries {}, page {} ({} order)\n",
             text("phase"), text("dtype"), json["f16_as_bf16"].get<bool>() ? " as bf16" : "", text("target"),
             json["threads"].get<int>(), json["q_heads"].get<int>(), json["kv_heads"].get<int>(),
             json["head_dim"].get<int>(), json["batch"].get<int>(), json["context"].get<long>(),
             json["query_len"].get<long>(), json["page_size"].get<int>(), text("page_order"));
  if (const std::string variant = variant_of(json); !variant.empty()) fmt::print("variant     {}\n", variant);
  fmt::print("checked     {} rows against the oracle, relative error {:.1e} (allowed {:.0e})\n",
             json["rows_checked"].get<std::size_t>(), number("relative_error"), number("relative_error_allowed"));
  fmt::print("time        {:.4f} ms (p10 {:.4f}, p90 {:.4f}) over {} samples, plan {:.1f} us\n", number("ms_median"),
             number("ms_p10"), number("ms_p90"), json["samples"].get<std::size_t>(), number("plan_us_median"));
  fmt::print(
      "bandwidth   {:.2f} GB/s of K and V, {:.1f} % of a contiguous read ({:.2f} GB/s, p10 {:.2f}, p90 {:.2f})\n",
      number("gb_per_s"), 100 * number("fraction_of_bandwidth"), number("read_bandwidth_gb_per_s"),
      number("read_bandwidth_gb_per_s_p10"), number("read_bandwidth_gb_per_s_p90"));
  if (json.contains("gain_of_sharing")) {
    fmt::print("cascade     {} of the tokens shared: {:.2f} times as fast as with pages of their own ({:.4f} ms)\n",
               json["shared_prefix"].get<long>(), number("gain_of_sharing"), number("ms_without_sharing"));
  }
  fmt::print("arithmetic  {:.1f} GFLOP/s", number("gflop_per_s"));
  if (json.contains("peak_unit")) {
    fmt::print(", {:.1f} % of the peak of {} ({:.0f} GFLOP/s)", 100 * number("fraction_of_peak"), text("peak_unit"),
               number("peak_gflop_per_s"));
  }
  fmt::print("\n");
}

ExitCode run_bench_attention(Options options) {
  if (std::isnan(options.seconds)) throw BadInput("--seconds is not a number");
  if (options.threads == 0) options.threads = std::max(1, cpu_info().num_cpus);
  const HeadConstants constants = make_head_constants(options);
  const WorkloadShape shape = make_shape(options, constants);
  check_config(shape.config);
  const tbb::global_control limit(tbb::global_control::max_allowed_parallelism,
                                  static_cast<std::size_t>(options.threads));
  tbb::task_arena arena(options.threads);
  return arena.execute([&] {
    AttentionBench bench(options, shape);
    const CheckedError error = bench.check();
    if (!(error.relative <= error.allowed)) {
      fmt::print(stderr, "pagedkv: relative error {:.3g} against the oracle exceeds {:.3g}; nothing was timed\n",
                 error.relative, error.allowed);
      return kCheckFailed;
    }
    const Json json = to_json(options, shape, bench, bench.measure(), error);
    if (options.json != "-") print_text(json);
    if (!options.json.empty()) write_json(options.json, json);
    return kDone;
  });
}

void add_shape_options(CLI::App& app, Options& o) {
  const std::map<std::string, Phase> phases = {{"decode", Phase::kDecode}, {"prefill", Phase::kPrefill}};
  const std::map<std::string, DType> dtypes = {{"f32", DType::f32}, {"f16", DType::f16}, {"bf16", DType::bf16}};
  const std::map<std::string, int> q_dtypes = {{"f32", 0}, {"f16", 1}, {"bf16", 2}};
  app.add_option("--phase", o.phase, "decode or prefill (default: decode)")
      ->transform(CLI::CheckedTransformer(phases).description("decode|prefill"));
  app.add_option("--q-heads", o.config.num_q_heads, "Query heads")->check(CLI::Range(1, 65'536))->capture_default_str();
  app.add_option("--kv-heads", o.config.num_kv_heads, "Key and value heads")
      ->check(CLI::Range(1, 65'536))
      ->capture_default_str();
  app.add_option("--head-dim", o.config.head_dim, "Elements of a query and key row")->capture_default_str();
  app.add_option("--v-head-dim", o.config.v_head_dim, "Elements of a value row (default: --head-dim)");
  CLI::Option* contexts =
      app.add_option("--contexts", o.contexts, "A ragged batch instead, as in 65536,512x31")->type_name("LIST");
  app.add_option("--batch", o.batch, "Sequences")
      ->check(CLI::Range(1, 65'536))
      ->excludes(contexts)
      ->capture_default_str();
  app.add_option("--context", o.context, "Tokens a sequence, new ones included")
      ->check(CLI::Range(1, 1 << 30))
      ->excludes(contexts)
      ->capture_default_str();
  app.add_option("--query-len", o.query_len, "New tokens a sequence (default: 1 in decode, 512 in prefill)")
      ->check(CLI::Range(1, 1 << 30));
  app.add_option("--shared-prefix", o.shared_prefix, "Leading tokens whose pages all sequences share")
      ->check(CLI::Range(0, 1 << 30));
  app.add_flag("--cascade", o.config.cascade,
               "Read the shared prefix once for all; also times the batch with pages of their own");
  app.add_option("--dtype", o.config.kv_dtype, "Format of the pages (default: bf16)")
      ->transform(CLI::CheckedTransformer(dtypes).description("f32|f16|bf16"));
  app.add_option("--q-dtype", o.q_dtype, "Format of queries and outputs (default: as --dtype)")
      ->transform(CLI::CheckedTransformer(q_dtypes).description("f32|f16|bf16"));
  app.add_option("--page-size", o.config.page_size, "Tokens a page")->check(CLI::Range(1, 256))->capture_default_str();
}

void add_variant_options(CLI::App& app, Options& o) {
  app.add_flag("--causal,!--no-causal", o.config.variant.causal,
               "Whether a query sees keys up to its own position only (default: yes)");
  app.add_option("--window-left", o.config.variant.window_left,
                 "Keys to the left of a query that it sees besides its own (default: all)")
      ->check(CLI::Range(0, 1 << 30));
  app.add_option("--soft-cap", o.config.variant.logits_soft_cap, "Soft cap of the logits");
  app.add_flag("--f16-as-bf16", o.config.variant.f16_as_bf16, "f16 pages may be rounded to bf16 for the matrix units");
  app.add_flag("--sinks", o.sinks, "A sink logit a query head");
  app.add_flag("--alibi", o.alibi, "ALiBi slopes");
  const std::map<std::string, MaskKind> masks = {{"none", MaskKind::kNone},
                                                 {"bool", MaskKind::kBool},
                                                 {"additive", MaskKind::kAdditive},
                                                 {"bits", MaskKind::kBits}};
  app.add_option("--mask", o.mask, "An explicit mask that hides one pair in 16 (default: none)")
      ->transform(CLI::CheckedTransformer(masks).description("none|bool|additive|bits"));
  app.add_flag("--values-in-keys", o.values_in_keys, "MLA: a value is the first --v-head-dim elements of its key");
}

void add_run_options(CLI::App& app, Options& o) {
  app.add_option("--threads", o.threads, "Threads (default: all CPUs)")->check(CLI::Range(1, 1024));
  app.add_option("--target", o.target, "Kernel target by name (default: the active one)")->type_name("NAME");
  app.add_option("--page-order", o.page_order, "Order of the pages in memory")
      ->check(CLI::IsMember({"random", "contiguous"}))
      ->capture_default_str();
  app.add_flag("--small-os-pages", o.small_os_pages, "Do not ask for huge pages");
  app.add_option("--working-set-mib", o.working_set_mib,
                 "Copies of the batch take turns until they fill this; 0 = one copy, which caches may hold")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--seconds", o.seconds, "Time to measure for")->check(CLI::Range(0.0, 3600.0))->capture_default_str();
  app.add_option("--seed", o.seed, "Seed of data and page order")->capture_default_str();
  app.add_option("--json", o.json, "Write the numbers there as JSON (- = stdout)")->type_name("FILE");
}

}  // namespace

Command add_bench_attention(CLI::App& bench) {
  CLI::App* app = bench.add_subcommand("attention", "Paged attention beside a contiguous read of as much memory");
  app->description(
      "Checks the kernel against the oracle (exit code 1 if it is off), then times it in turn with a contiguous read\n"
      "of as many bytes by the same threads and, for prefill, with the arithmetic peak of the unit that does its\n"
      "matrix work. Times are medians; the fractions are medians over rounds of neighbours in time. Data is random,\n"
      "pages come in random order, and copies of the batch take turns so that caches do not help.");
  app->option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);  // so that scripts can override
  auto options = std::make_shared<Options>();
  add_shape_options(*app, *options);
  add_variant_options(*app, *options);
  add_run_options(*app, *options);
  return {app, [options] { return run_bench_attention(*options); }};
}

}  // namespace pagedkv::tool
