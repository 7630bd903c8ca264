// `pagedkv replay`: its command line.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"
#include "json_file.h"
#include "replay/html_report.h"
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
    "  paged       pages of one pool, taken as sequences grow (this library)\n"
    "  max-len     one contiguous reservation of the longest length for each sequence\n"
    "  doubling    a contiguous buffer for each sequence that doubles and is copied\n"
    "  oracle      one contiguous reservation of the length that the sequence will have\n"
    "  chained     a chain of contiguous chunks, each as large as all before it\n"
    "  buddy       as doubling, over binary buddies\n"
    "  cells       one array of token cells, searched for free ones\n"
    "  glibc, jemalloc, mimalloc, tbb, boost-pool\n"
    "              as doubling, with realloc of that allocator over real memory\n"
    "  all         all of them side by side, paged at several page sizes\n"
    "Without --attention tokens are only accounted for. With it, real rows are written and attended in every step, "
    "and\n"
    "the policies are paged, max-len and doubling.";
constexpr const char* kFooter =
    "Examples:\n"
    "  pagedkv replay --workload chat --policy all --attention\n"
    "  pagedkv replay --trace mooncake_conversation_trace.jsonl.xz --format mooncake --capacity-tokens 16000000\n"
    "  pagedkv replay --workload batch --policy all --capacity-tokens 65536\n"
    "docs/REPLAY.md defines every number.";

/// The command line as it was given.
struct Arguments {
  std::string trace, format, workload = "chat", arrivals, policy = "paged", dtype = "bf16", json, html;
  std::uint64_t seed = 1, max_requests = 0, capacity_tokens = 0, max_seq_len = 0;
  double session_gap_s = 60, step_ms = 10, token_us = 10;
  std::int64_t slot_bytes = -1;  ///< -1 = not given.
  std::uint32_t page_size = 16, max_seqs = 256, max_batched_tokens = 2048;
  bool attention = false, prefix_cache = false;
  std::string eviction = "lru";
  std::uint32_t layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0;
};

constexpr std::uint64_t kWorkloadRequests = 512, kAttentionRequests = 64;
constexpr std::uint64_t kCapacityTokens = 1 << 20, kAttentionCapacityTokens = 1 << 14;
constexpr AttentionShape kLlama8b = {32, 32, 8, 128, DType::bf16};
constexpr AttentionShape kSmall = {2, 16, 4, 64, DType::bf16};

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
  std::vector<std::string> policies = policy_names();
  policies.emplace_back("all");
  app.add_option("--policy", args.policy, "How memory is given out, see above")
      ->check(CLI::IsMember(policies))
      ->capture_default_str()
      ->group("Memory");
  CLI::Option* prefix_cache =
      app.add_flag("--prefix-cache", args.prefix_cache, "Reuse cached prefixes, as block ids of the input say (paged)")
          ->group("Memory");
  app.add_option("--eviction", args.eviction, "Which cached page is taken first: lru, s3fifo or arc")
      ->check(CLI::IsMember({"lru", "s3fifo", "arc"}))
      ->needs(prefix_cache)
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
  app.add_option("--slot-bytes", args.slot_bytes,
                 "Real memory of a slot, touched and copied as a server would; 0 = account only (default: 0; with "
                 "all, or a real allocator, as much as fits into 1 GiB, at most 1024)")
      ->check(CLI::Range(0, 1 << 20))
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

/// 0 = all of a trace.
std::uint64_t max_requests_of(const Arguments& args) {
  if (args.max_requests != 0 || !args.trace.empty()) return args.max_requests;
  return args.attention ? kAttentionRequests : kWorkloadRequests;
}

OpenSource source_of(const Arguments& args) {
  if (args.trace.empty()) {
    return [workload = parse_workload(args.workload), seed = args.seed, max_requests = max_requests_of(args)] {
      return limit_requests(generate_workload(workload, seed), max_requests);
    };
  }
  if (args.format.empty()) throw BadInput("--trace needs --format: mooncake, azure or agentic");
  std::error_code error;
  if (std::filesystem::exists(args.trace, error) && !std::filesystem::is_regular_file(args.trace, error)) {
    throw BadInput(args.trace + ": a trace is read twice: give a file, not a pipe");
  }
  return [path = args.trace, format = parse_trace_format(args.format), gap_s = args.session_gap_s,
          max_requests = args.max_requests] { return limit_requests(open_trace(path, format, gap_s), max_requests); };
}

bool closed_arrivals(const Arguments& args) {
  return args.arrivals.empty() ? args.trace.empty() : args.arrivals == "closed";
}

std::uint64_t slot_bytes_of(const Arguments& args, const std::vector<Policy>& policies, std::uint64_t capacity_tokens) {
  if (args.attention || args.prefix_cache) return 0;
  if (args.slot_bytes >= 0) return static_cast<std::uint64_t>(args.slot_bytes);
  if (policies.size() == 1 && policies[0].kind != PolicyKind::kAllocator) return 0;
  constexpr std::uint64_t kMostBytes = 1 << 30;
  return std::clamp<std::uint64_t>(std::bit_floor(kMostBytes / capacity_tokens), 64, 1024);
}

ReplayOptions options_of(const Arguments& args, const std::vector<Policy>& policies) {
  if (std::isnan(args.step_ms + args.token_us + args.session_gap_s)) throw BadInput("a time is not a number");
  ReplayOptions options;
  options.open_source = source_of(args);
  options.arrivals = closed_arrivals(args) ? ArrivalMode::kClosed : ArrivalMode::kTrace;
  options.scheduler = {args.max_seqs, args.max_batched_tokens, args.step_ms * 1e-3, args.token_us * 1e-6};
  MemoryOptions& memory = options.memory;
  memory.capacity_tokens = args.capacity_tokens != 0 ? args.capacity_tokens
                           : args.attention          ? kAttentionCapacityTokens
                                                     : kCapacityTokens;
  memory.max_seq_len = args.max_seq_len;
  memory.max_seqs = args.max_seqs;
  memory.slot_bytes = slot_bytes_of(args, policies, memory.capacity_tokens);
  memory.attention = args.attention;
  memory.shape = shape_of(args);
  memory.prefix_cache = args.prefix_cache;
  memory.eviction = args.eviction == "arc"      ? Eviction::kArc
                    : args.eviction == "s3fifo" ? Eviction::kS3Fifo
                                                : Eviction::kLru;
  if (args.prefix_cache) options.ideal = ideal_prefix_hits(*options.open_source());
  return options;
}

/// Throws BadInput for an option that would be without effect beside the others.
void check_combinations(const CLI::App& app, const Arguments& args) {
  const bool has_cache = args.policy == "all" || args.policy == "paged";
  const bool has_longest = args.policy != "paged" && args.policy != "chained" && args.policy != "cells";
  const struct {
    const char* option;
    bool effective;
    const char* why;
  } rules[] = {
      {"--seed", args.trace.empty(), "it is of generated requests, and those of a trace are given"},
      {"--session-gap", args.format == "agentic", "only sessions of an agentic trace are moved"},
      {"--max-seq-len", has_longest, "the policy reserves no longest length"},
      {"--slot-bytes", !args.attention && !args.prefix_cache,
       "slots have memory of their own only without --attention and --prefix-cache"},
      {"--prefix-cache", has_cache, "the policy has no prefix cache"},
      {"--prefix-cache", args.format != "azure", "an azure trace has no block ids"},
  };
  for (const auto& rule : rules) {
    if (app.count(rule.option) != 0 && !rule.effective) {
      throw BadInput(fmt::format("{} would be without effect: {}", rule.option, rule.why));
    }
  }
}

std::string source_name(const Arguments& args) { return args.trace.empty() ? args.workload : args.trace; }

Json to_json(const Arguments& args, const ReplayReport& report) {
  Json json = report.to_json();
  json["source"] = source_name(args);
  json["arrivals"] = closed_arrivals(args) ? "closed" : "trace";
  json["max_seqs"] = args.max_seqs;
  json["max_batched_tokens"] = args.max_batched_tokens;
  json["max_requests"] = max_requests_of(args);
  json["step_ms"] = args.step_ms;
  json["token_us"] = args.token_us;
  if (args.trace.empty()) {
    json["seed"] = args.seed;
  } else {
    json["format"] = args.format;
  }
  if (args.format == "agentic") json["session_gap_s"] = args.session_gap_s;
  if (report.memory.prefix_cache) json["eviction"] = args.eviction;
  const AttentionShape& shape = report.memory.shape;
  json["layers"] = shape.layers;
  json["q_heads"] = shape.q_heads;
  json["kv_heads"] = shape.kv_heads;
  json["head_dim"] = shape.head_dim;
  json["dtype"] = args.dtype;
  return json;
}

/// What the HTML report says of its source.
Json make_about(const Arguments& args, const SourceSummary& summary, const ReplayOptions& options) {
  return {{"source", args.trace.empty() ? args.workload + " workload" : args.trace.substr(args.trace.rfind('/') + 1)},
          {"arrivals", closed_arrivals(args) ? "closed" : "trace"},
          {"requests", summary.requests},
          {"prompt_tokens", summary.prompt_tokens},
          {"output_tokens", summary.output_tokens},
          {"longest_tokens", summary.longest_tokens},
          {"capacity_tokens", options.memory.capacity_tokens}};
}

/// Rows depend on tokens alone and attention on nothing but rows: the policies must agree to the last bit.
void check_outputs_agree(const std::vector<ReplayReport>& reports) {
  for (const ReplayReport& report : reports) {
    if (report.memory.attention && report.counts.completed == reports[0].counts.completed &&
        report.totals.output_checksum != reports[0].totals.output_checksum) {
      throw CheckFailed(
          fmt::format("the outputs of policies {} and {} differ", reports[0].policy.name, report.policy.name));
    }
  }
}

/// With several policies, an allocator that is not installed is said, and the others go on.
std::vector<ReplayReport> replay_all(const ReplayOptions& options, const std::vector<Policy>& policies,
                                     const SourceSummary& summary) {
  std::vector<ReplayReport> reports;
  for (const Policy& policy : policies) {
    try {
      reports.push_back(replay(options, policy, summary));
    } catch (const BadInput& error) {
      if (policies.size() == 1 || policy.kind != PolicyKind::kAllocator) throw;
      fmt::print(stderr, "{}: not measured: {}\n", policy.name, error.what());
    }
  }
  return reports;
}

ExitCode run(const Arguments& args) {
  const std::vector<Policy> policies = parse_policies(args.policy, args.page_size, args.attention);
  const ReplayOptions options = options_of(args, policies);
  const SourceSummary summary = summarize(*options.open_source());
  if (summary.requests == 0) throw BadInput(source_name(args) + ": there are no requests in it");
  const std::vector<ReplayReport> reports = replay_all(options, policies, summary);

  if (args.json != "-") {
    fmt::print("{}: {} requests, {} prompt and {} output tokens, longest {}; capacity {} tokens\n\n", source_name(args),
               with_thousands(summary.requests), with_thousands(summary.prompt_tokens),
               with_thousands(summary.output_tokens), with_thousands(summary.longest_tokens),
               with_thousands(options.memory.capacity_tokens));
    fmt::print("{}", format_reports(reports));
  }
  if (!args.json.empty()) {
    Json json = to_json(args, reports.at(0));
    if (policies.size() > 1) {
      json = {{"policies", Json::array()}};
      for (const ReplayReport& report : reports) json["policies"].push_back(to_json(args, report));
    }
    write_json(args.json, json);
  }
  if (!args.html.empty()) write_html_report(args.html, make_about(args, summary, options), reports);
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
  app->add_option("--json", args->json, "Write the report to this file; - for stdout, without the table")
      ->type_name("FILE");
  app->add_option("--html", args->html, "Write one self-contained page with plots to this file; best with --policy all")
      ->type_name("FILE");
  return {app, [app, args] {
            check_combinations(*app, *args);
            return run(*args);
          }};
}

}  // namespace pagedkv::tool
