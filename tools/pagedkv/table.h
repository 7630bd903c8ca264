// A table of text for a terminal: the first column left-aligned, the others to the right.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

namespace pagedkv::tool {

class Table {
 public:
  explicit Table(std::vector<std::string> header) : rows_{std::move(header)} {}

  /// One row; missing cells are empty, cells beyond the header are dropped.
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  [[nodiscard]] std::string to_string() const;
  void print(std::FILE* file) const { std::fputs(to_string().c_str(), file); }

 private:
  std::vector<std::vector<std::string>> rows_;  ///< [0] is the header.
};

std::string with_thousands(unsigned long long value);  ///< 1234567 -> "1,234,567".
std::string with_bytes(double bytes);                  ///< 1536 -> "1.50 KiB".
std::string with_percent(double fraction);             ///< 0.1234 -> "12.34 %".

}  // namespace pagedkv::tool
