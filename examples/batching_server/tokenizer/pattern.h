// Pattern: the regular expression by which a tokenizer cuts text into words, by PCRE2.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace serving {

/// Threads: const calls from any number at once.
class Pattern {
 public:
  /// Throws LoadError, in the name of `origin`, if the expression does not compile.
  Pattern(const std::string& expression, const std::string& origin);

  /// The text cut at every match, matches and what lies between them each a part of its own; all of it, in order.
  /// Text that is not UTF-8, or on which matching exceeds its limits, comes back whole.
  [[nodiscard]] std::vector<std::string_view> split(std::string_view text) const;

 private:
  std::shared_ptr<const void> code_;  // pcre2_code
};

}  // namespace serving
