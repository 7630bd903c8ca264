// Puts the data of the reports into the page report.html, which draws itself.
#include "replay/html_report.h"

#include <algorithm>

#include "replay/report_template.h"
#include "tool.h"

namespace pagedkv::tool {
namespace {

constexpr std::size_t kMapColumns = 96, kMapCells = kMapColumns * 64;

/// Cuts the capacity into cells: the sequence that holds most of each, or -1, and the share of it that holds tokens.
Json map_of(const ReplayReport& report) {
  const std::uint64_t capacity = report.memory.capacity_tokens;
  const std::size_t num_cells = std::min<std::size_t>(kMapCells, capacity);
  if (report.layout.empty()) return Json::array();
  struct Cell {
    std::int64_t key = -1;
    std::uint64_t reserved_by_key = 0, reserved = 0, held = 0;
  };
  std::vector<Cell> cells(num_cells);
  const auto begin_of = [&](std::size_t cell) { return cell * capacity / num_cells; };
  for (const SlotRun& run : report.layout) {
    const std::uint64_t end = std::min(run.begin + run.size, capacity), held_end = std::min(run.begin + run.held, end);
    auto cell = static_cast<std::size_t>(run.begin * num_cells / capacity);
    for (; cell < num_cells && begin_of(cell) < end; ++cell) {
      const std::uint64_t from = std::max(run.begin, begin_of(cell)), to = std::min(end, begin_of(cell + 1));
      if (from >= to) continue;
      cells[cell].reserved += to - from;
      cells[cell].held += held_end > from ? std::min(held_end, to) - from : 0;
      if (to - from >= cells[cell].reserved_by_key) {
        cells[cell].reserved_by_key = to - from;
        cells[cell].key = run.key;
      }
    }
  }
  Json map = Json::array();
  for (std::size_t cell = 0; cell < num_cells; ++cell) {
    const std::uint64_t size = begin_of(cell + 1) - begin_of(cell);
    const bool used = 2 * cells[cell].reserved >= size;
    const std::uint64_t held_percent = cells[cell].held * 100 / size;  // two decimals are enough for a page
    map.push_back({used ? cells[cell].key : -1, static_cast<double>(held_percent) / 100});
  }
  return map;
}

Json data_of(const ReplayReport& report) {
  Json data = report.to_json();
  data["label"] = report.policy.label();
  data["samples"] = Json::array();
  for (const ReplaySample& sample : report.samples) {
    data["samples"].push_back({sample.virtual_s, sample.reserved_slots, sample.held_tokens, sample.sequences});
  }
  data["map"] = map_of(report);
  return data;
}

}  // namespace

void write_html_report(const std::string& path, const Json& about, const std::vector<ReplayReport>& reports) {
  Json data = about;
  data["map_columns"] = kMapColumns;
  data["runs"] = Json::array();
  for (const ReplayReport& report : reports) data["runs"].push_back(data_of(report));
  std::string json = to_text(data);
  // A file name with "</script>" in it must not end the data.
  for (std::size_t at = 0; (at = json.find("</", at)) != std::string::npos; at += 3) json.insert(at + 1, "\\");

  std::string page = kReportTemplate;
  const std::string mark = "@REPORT@";
  page.replace(page.find(mark), mark.size(), json);
  write_text(path, page);
}

}  // namespace pagedkv::tool
