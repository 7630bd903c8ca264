// Reads a program's arguments with CLI11; wrong ones are said in one line and end it with code 2.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <optional>
#include <string>

namespace serving {

/// As CLI::Range, which lets "nan" pass.
inline CLI::Validator between(double least, double most) {
  return {[=](const std::string& text) {
            double value = 0;
            const bool holds = CLI::detail::lexical_cast(text, value) && value >= least && value <= most;
            return holds ? std::string() : fmt::format("{} is not between {} and {}", text, least, most);
          },
          fmt::format("FLOAT in [{} - {}]", least, most)};
}

/// The code to leave with at once, 0 after --help and 2 after wrong usage, or nothing: go on.
inline std::optional<int> read_arguments(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // prints the help
    fmt::print(stderr, "{}: {} (see --help)\n", app.get_name(), error.what());
    return 2;
  }
  return std::nullopt;
}

}  // namespace serving
