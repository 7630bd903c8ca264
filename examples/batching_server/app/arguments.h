// Reads a program's arguments with CLI11; wrong ones are said in one line and end it with code 2.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <optional>

namespace serving {

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
