// `pagedkv replay`: its command line.
#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "json_file.h"
#include "replay/replay_run.h"
#include "replay/trace.h"
#include "replay/workload.h"
#include "table.h"

namespace pagedkv::tool {
namespace {

constexpr const char* kDescription =
    "Replays requests through a batching server in virtual time, over one shared memory for keys and values.\n"
    "\n"
    "Requests are admitted in order of arrival while memory lasts. A step prefills prompts in chunks and decodes one\n"
    "token of every running sequence; when memory runs out, the youngest sequence is preempted and computed again\n"
    "later. --policy chooses how memory is given out:\n"
    "  paged     pages of one pool, taken as sequences grow (this library)\n"
    "  max-len   one contiguous reservation of the longest length for each sequence\n"
    "  doubling  a contiguous buffer for each sequence that doubles and is copied\n"
    "  all       the three, side by side\n"
    "Without --attention tokens are only accounted for; with it, real rows are written and attended in every step.";
constexpr const char* kFooter =
    "Examples:\n"
    "  pagedkv replay --workload chat --policy all --attention\n"
    "  pagedkv replay --trace mooncake_conversation_trace.jsonl.xz --format mooncake --capacity-tokens 16000000\n"
    "docs/REPLAY.md defines every number.";

/// The command line as it was given.
struct Arguments {
  std::string trace, format, workload = "chat", arrivals, policy = "paged", dtype = "bf16", json;
  std::uint64_t seed = 1, max_requests = 0, capacity_tokens = 0, max_seq_len = 0;
  double session_gap_s = 60, step_ms = 10, token_us = 10;
  std::uint32_t page_size = 16, max_seqs = 256, max_batched_tokens = 2048;
  bool attention = false;
  std::uint32_t layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0;
};

constexpr std::uint64_t kWorkloadRequests = 512, kAttentionRequests = 96;
constexpr std::uint64_t kCapacityTokens = 1 << 20, kAttentionCapacityTokens = 1 << 14;
constexpr AttentionShape kLlama8b = {32, 32, 8, 128, DType::bf16};
constexpr AttentionShape kSmall = {4, 16, 4, 64, DType::bf16};

void add_source_options(CLI::App& app, Arguments& args) {
  CLI::Option* trace = app.add_option("--trace", args.trace, "Trace to replay, plain or .xz")->group("Requests");
  app.add_option("--format", args.format, "Format of the trace: mooncake, azure or agentic")
      ->check(CLI::IsMember({"mooncake", "azure", "agentic"}))
      ->needs(trace)
      ->group("Requests");
  app.add_option("--workload", args.workload, "Generated requests instead of a trace: chat, agent or batch")
      ->check(CLI::IsMember({"chat", "agent", "batch"}))
      ->excludes(trace)
      ->capture_default_str()
      ->group("Requests");
  app.add_option("--seed", args.seed, "Seed of the generator")->capture_default_str()->group("Requests");
  app.add_option("--max-requests", args.max_requests,
                 fmt::format("Stop after so many requests (default: all of a trace, {} generated, {} with --attention)",
                             kWorkloadRequests, kAttentionRequests))
      ->group("Requests");
  app.add_option("--arrivals", args.arrivals,
                 "trace: at the times of the trace; closed: as soon as there is room (default: trace with --trace, "
                 "else closed)")
      ->check(CLI::IsMember({"trace", "closed"}))
      ->group("Requests");
  app.add_option("--session-gap", args.session_gap_s, "Seconds between the starts of sessions of an agentic trace")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str()
      ->group("Requests");
}

void add_server_options(CLI::App& app, Arguments& args) {
  app.add_option("--policy", args.policy, "paged, max-len, doubling or all")
      ->check(CLI::IsMember({"paged", "max-len", "doubling", "all"}))
      ->capture_default_str()
      ->group("Memory");
  app.add_option("--capacity-tokens", args.capacity_tokens,
                 fmt::format("Memory, in token slots (default: {}, with --attention {})", kCapacityTokens,
                             kAttentionCapacityTokens))
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 40))
      ->group("Memory");
  app.add_option("--page-size", args.page_size, "Tokens a page")
      ->check(CLI::Range(1u, 256u))
      ->capture_default_str()
      ->group("Memory");
  app.add_option("--max-seq-len", args.max_seq_len,
                 "Longest length that max-len reserves and doubling grows to (default: the longest in the input)")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 40))
      ->group("Memory");
  app.add_option("--max-seqs", args.max_seqs, "Sequences running at once")
      ->check(CLI::Range(1u, 65536u))
      ->capture_default_str()
      ->group("Server");
  app.add_option("--max-batched-tokens", args.max_batched_tokens, "Tokens computed in a step")
      ->check(CLI::Range(1u, 1u << 20))
      ->capture_default_str()
      ->group("Server");
  app.add_option("--step-ms", args.step_ms, "Virtual time of a step: this much ...")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str()
      ->group("Server");
  app.add_option("--token-us", args.token_us, "... and this much for each of its tokens")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str()
      ->group("Server");
}

void add_attention_options(CLI::App& app, Arguments& args) {
  app.add_flag("--attention", args.attention, "Write real K and V rows and compute real attention")->group("Attention");
  const auto add = [&](const char* name, std::uint32_t& value, std::uint32_t max, std::uint32_t accounted,
                       std::uint32_t computed) {
    app.add_option(name, value, fmt::format("default: {}, with --attention {}", accounted, computed))
        ->check(CLI::Range(1u, max))
        ->group("Attention");
  };
  add("--layers", args.layers, 4096, kLlama8b.layers, kSmall.layers);
  add("--q-heads", args.q_heads, 4096, kLlama8b.q_heads, kSmall.q_heads);
  add("--kv-heads", args.kv_heads, 4096, kLlama8b.kv_heads, kSmall.kv_heads);
  add("--head-dim", args.head_dim, 1024, kLlama8b.head_dim, kSmall.head_dim);
  app.add_option("--dtype", args.dtype, "f32, f16 or bf16")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str()
      ->group("Attention");
}

AttentionShape shape_of(const Arguments& args) {
  AttentionShape shape = args.attention ? kSmall : kLlama8b;
  if (args.layers != 0) shape.layers = args.layers;
  if (args.q_heads != 0) shape.q_heads = args.q_heads;
  if (args.kv_heads != 0) shape.kv_heads = args.kv_heads;
  if (args.head_dim != 0) shape.head_dim = args.head_dim;
  shape.dtype = args.dtype == "f32" ? DType::f32 : args.dtype == "f16" ? DType::f16 : DType::bf16;
  return shape;
}

OpenSource source_of(const Arguments& args) {
  if (args.trace.empty()) {
    const std::uint64_t num_requests = args.max_requests != 0 ? args.max_requests
                                       : args.attention       ? kAttentionRequests
                                                              : kWorkloadRequests;
    return [workload = parse_workload(args.workload), seed = args.seed, num_requests] {
      return limit_requests(generate_workload(workload, seed), num_requests);
    };
  }
  if (args.format.empty()) throw BadInput("--trace needs --format: mooncake, azure or agentic");
  return [path = args.trace, format = parse_trace_format(args.format), gap_s = args.session_gap_s,
          max_requests = args.max_requests] { return limit_requests(open_trace(path, format, gap_s), max_requests); };
}

ReplayOptions options_of(const Arguments& args) {
  if (std::isnan(args.step_ms + args.token_us + args.session_gap_s)) throw BadInput("a time is not a number");
  ReplayOptions options;
  options.source_name = args.trace.empty() ? args.workload : args.trace;
  options.open_source = source_of(args);
  const bool closed = args.arrivals.empty() ? args.trace.empty() : args.arrivals == "closed";
  options.arrivals = closed ? ArrivalMode::kClosed : ArrivalMode::kTrace;
  options.capacity_tokens = args.capacity_tokens != 0 ? args.capacity_tokens
                            : args.attention          ? kAttentionCapacityTokens
                                                      : kCapacityTokens;
  options.page_size = args.page_size;
  options.max_seq_len = args.max_seq_len;
  options.scheduler = {args.max_seqs, args.max_batched_tokens, args.step_ms * 1e-3, args.token_us * 1e-6};
  options.attention = args.attention;
  options.shape = shape_of(args);
  options.progress = true;
  return options;
}

Json to_json(const ReplayOptions& options, const ReplayReport& report) {
  Json json = report.to_json();
  json["source"] = options.source_name;
  json["arrivals"] = options.arrivals == ArrivalMode::kClosed ? "closed" : "trace";
  json["capacity_tokens"] = options.capacity_tokens;
  json["page_size"] = options.page_size;
  json["max_seqs"] = options.scheduler.max_seqs;
  json["max_batched_tokens"] = options.scheduler.max_batched_tokens;
  return json;
}

/// Rows depend on tokens alone and attention on nothing but rows: the policies must agree to the last bit.
void check_outputs_agree(const std::vector<ReplayReport>& reports) {
  for (const ReplayReport& report : reports) {
    if (report.attention && report.counts.completed == reports[0].counts.completed &&
        report.totals.output_checksum != reports[0].totals.output_checksum) {
      throw CheckFailed(fmt::format("the outputs of policies {} and {} differ", to_string(reports[0].policy),
                                    to_string(report.policy)));
    }
  }
}

ExitCode run(const Arguments& args) {
  const ReplayOptions options = options_of(args);
  const SourceSummary summary = summarize(*options.open_source());
  if (summary.requests == 0) throw BadInput(options.source_name + ": there are no requests in it");

  std::vector<Policy> policies = {Policy::kPaged, Policy::kMaxLen, Policy::kDoubling};
  if (args.policy != "all") policies = {parse_policy(args.policy)};
  std::vector<ReplayReport> reports;
  for (const Policy policy : policies) reports.push_back(replay(options, policy, summary));

  if (args.json != "-") {
    fmt::print("{}: {} requests, {} prompt and {} output tokens, longest {}; capacity {} tokens, page size {}\n\n",
               options.source_name, with_thousands(summary.requests), with_thousands(summary.prompt_tokens),
               with_thousands(summary.output_tokens), with_thousands(summary.longest_tokens),
               with_thousands(options.capacity_tokens), options.page_size);
    fmt::print("{}", format_reports(reports));
  }
  if (!args.json.empty()) {
    Json json = to_json(options, reports[0]);
    if (args.policy == "all") {
      json = {{"policies", Json::array()}};
      for (const ReplayReport& report : reports) json["policies"].push_back(to_json(options, report));
    }
    write_json(args.json, json);
  }
  check_outputs_agree(reports);
  return kDone;
}

}  // namespace

Command add_replay(CLI::App& root) {
  CLI::App* app = root.add_subcommand("replay", "Replay requests through a batching server, paged or not");
  app->description(kDescription);
  app->footer(kFooter);
  const auto args = std::make_shared<Arguments>();
  add_source_options(*app, *args);
  add_server_options(*app, *args);
  add_attention_options(*app, *args);
  app->add_option("--json", args->json, "Write the report to this file; - for stdout, without the table");
  return {app, [args] { return run(*args); }};
}

}  // namespace pagedkv::tool
