// Column widths and number formats of tables.
#include "table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace pagedkv::tool {
namespace {

/// Characters that a terminal shows: UTF-8 continuation bytes take no column.
std::size_t columns_of(const std::string& text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace

std::string Table::to_string() const {
  std::vector<std::size_t> width(rows_[0].size(), 0);
  for (const auto& row : rows_) {
    for (std::size_t c = 0; c < std::min(row.size(), width.size()); ++c)
      width[c] = std::max(width[c], columns_of(row[c]));
  }
  std::string text;
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    std::string line;
    for (std::size_t c = 0; c < width.size(); ++c) {
      const std::string cell = c < rows_[r].size() ? rows_[r][c] : "";
      const std::string padding(width[c] - columns_of(cell), ' ');
      if (c == 0) {
        line.append(cell).append(padding);
      } else {
        line.append(2, ' ').append(padding).append(cell);
      }
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text.append(line).append(1, '\n');
    if (r == 0) {
      std::size_t total = 0;
      for (std::size_t c = 0; c < width.size(); ++c) total += width[c] + (c == 0 ? 0 : 2);
      text.append(total, '-').append(1, '\n');
    }
  }
  return text;
}

std::string with_thousands(unsigned long long value) {
  std::string digits = std::to_string(value);
  for (std::size_t at = digits.size(); at > 3;) digits.insert(at -= 3, 1, ',');
  return digits;
}

std::string with_bytes(double bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < kUnits.size(); ++unit) bytes /= 1024;
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 2, kUnits[unit]);
}

std::string with_percent(double fraction) { return fmt::format("{:.2f} %", 100 * fraction); }

}  // namespace pagedkv::tool
