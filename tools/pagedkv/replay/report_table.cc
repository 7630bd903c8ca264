// Reports as a table of text.
#include <fmt/format.h>

#include <functional>

#include "replay/replay_run.h"
#include "table.h"

namespace pagedkv::tool {
namespace {

using R = const ReplayReport&;
struct Row {
  const char* name;   ///< As the label of a row.
  const char* brief;  ///< As the head of a column; null if a wide table does not show it.
  std::function<std::string(R)> cell;
};

std::string with_time(std::uint64_t ns) {
  if (ns < 10'000) return fmt::format("{} ns", ns);
  return ns < 10'000'000 ? fmt::format("{} us", ns / 1000) : fmt::format("{} ms", ns / 1'000'000);
}

constexpr const char* kUnknown = "-";

/// What an allocator moved may have been page tables instead of bytes.
std::string with_copied(R r) {
  const auto bytes = static_cast<double>(r.totals.copied_tokens * r.memory.shape.bytes_per_token());
  return (r.policy.kind == PolicyKind::kAllocator ? "<= " : "") + with_bytes(bytes);
}

/// A cell of a report with a prefix cache: other policies stand beside it in the table.
template <class Cell>
std::function<std::string(R)> if_cached(Cell cell) {
  return [cell](R r) { return r.memory.prefix_cache ? cell(r) : kUnknown; };
}

std::vector<Row> rows_for(R first) {
  std::vector<Row> rows = {
      {"requests completed", nullptr, [](R r) { return with_thousands(r.counts.completed); }},
      {"requests too long", nullptr, [](R r) { return with_thousands(r.counts.rejected); }},
      {"concurrent sequences, mean", "sequences", [](R r) { return fmt::format("{:.1f}", r.mean_sequences()); }},
      {"concurrent sequences, peak", "peak", [](R r) { return with_thousands(r.counts.peak_sequences); }},
      {"reserved slots without a token", "waste", [](R r) { return with_percent(r.tail_waste()); }},
      {"free slots that are unusable", "unusable",
       [](R r) { return r.knows_overhead() ? with_percent(r.external_fragmentation()) : kUnknown; }},
      {"capacity that holds tokens", "utilization", [](R r) { return with_percent(r.utilization()); }},
      {"peak tokens", nullptr, [](R r) { return with_thousands(r.counts.peak_tokens); }},
      {"bytes copied", "copied", with_copied},
      {"preemptions", "preempted", [](R r) { return with_thousands(r.counts.preemptions); }},
      {"tokens computed again", nullptr, [](R r) { return with_thousands(r.counts.recomputed_tokens); }},
      {"room for tokens, p50", "p50", [](R r) { return with_time(r.latency_p50_ns); }},
      {"room for tokens, p99", "p99", [](R r) { return with_time(r.latency_p99_ns); }},
      {"room for tokens, p99.9", "p99.9", [](R r) { return with_time(r.latency_p999_ns); }},
      {"metadata", "metadata",
       [](R r) { return r.knows_overhead() ? with_bytes(static_cast<double>(r.peak_metadata_bytes)) : kUnknown; }},
      {"steps", "steps", [](R r) { return with_thousands(r.counts.steps); }},
      {"virtual time", nullptr, [](R r) { return fmt::format("{:.1f} s", r.counts.virtual_s); }},
      {"wall time", nullptr, [](R r) { return fmt::format("{:.2f} s", r.wall_s); }},
  };
  if (first.memory.slot_bytes != 0) {
    rows.push_back(
        {"resident / live bytes", "resident/live", [](R r) { return fmt::format("{:.2f}", r.os_scatter()); }});
  }
  if (first.memory.prefix_cache) {
    const auto add = [&rows](const char* name, const char* brief, auto cell) {
      rows.push_back({name, brief, if_cached(cell)});
    };
    add("prompt tokens found in the cache", "found", [](R r) { return with_percent(r.prefix_hit_rate()); });
    add("at best, without limits", nullptr, [](R r) { return with_percent(r.prefix_ideal_rate()); });
    add("pages evicted", "evicted", [](R r) { return with_thousands(r.pages.evictions); });
    add("pages used at the end", nullptr, [](R r) { return with_thousands(r.pages.used); });
    add("pages evictable at the end", nullptr, [](R r) { return with_thousands(r.pages.evictable); });
    add("pages free at the end", nullptr, [](R r) { return with_thousands(r.pages.free); });
  }
  if (first.memory.attention) {
    rows.push_back({"tokens/s", "tokens/s",
                    [](R r) { return with_thousands(static_cast<unsigned long long>(r.tokens_per_s())); }});
    rows.push_back({"attention, K and V read", "attention",
                    [](R r) { return fmt::format("{:.2f} GB/s", r.attention_gb_per_s()); }});
    rows.push_back(
        {"checksum of outputs", nullptr, [](R r) { return fmt::format("{:08x}", r.totals.output_checksum >> 32); }});
  }
  return rows;
}

}  // namespace

std::string format_reports(const std::vector<ReplayReport>& reports) {
  constexpr std::size_t kMostColumns = 4;
  const std::vector<Row> rows = rows_for(reports.at(0));
  std::vector<std::string> header = {""};
  if (reports.size() <= kMostColumns) {
    for (const ReplayReport& report : reports) header.push_back(report.policy.label());
    Table table(std::move(header));
    for (const Row& row : rows) {
      std::vector<std::string> cells = {row.name};
      for (const ReplayReport& report : reports) cells.push_back(row.cell(report));
      table.add(std::move(cells));
    }
    return table.to_string();
  }
  for (const Row& row : rows) {
    if (row.brief != nullptr) header.emplace_back(row.brief);
  }
  Table table(std::move(header));
  for (const ReplayReport& report : reports) {
    std::vector<std::string> cells = {report.policy.label()};
    for (const Row& row : rows) {
      if (row.brief != nullptr) cells.push_back(row.cell(report));
    }
    table.add(std::move(cells));
  }
  return table.to_string();
}

}  // namespace pagedkv::tool
