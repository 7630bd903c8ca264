// The frame of the program `pagedkv`: subcommands, exit codes, and the one way in which bad input is reported.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <stdexcept>
#include <string>

#include "pagedkv/result.h"

namespace pagedkv::tool {

/// What scripts may rely on.
enum ExitCode : int {
  kDone = 0,
  kCheckFailed = 1,  ///< The command ran, and something that it checked does not hold.
  kBadInput = 2,     ///< Bad usage or bad input; one line on stderr says what.
};

/// Bad usage or input. Ends the program with kBadInput and its text, one line, on stderr.
class BadInput : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Something that was checked does not hold. Ends the program with kCheckFailed and its text, one line, on stderr.
class CheckFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A subcommand: its parser, and what to run once the whole command line has been accepted.
struct Command {
  CLI::App* parser = nullptr;
  std::function<ExitCode()> run;
};

/// Parses the command line, runs the subcommand that it names and returns an ExitCode. Never throws.
int run_tool(int argc, const char* const* argv) noexcept;

/// The value, or BadInput that says what was attempted and why it failed.
template <class T>
T value_or_bad_input(Result<T> result, const char* attempted) {
  if (!result) throw BadInput(std::string(attempted) + ": " + result.error().what);
  if constexpr (!std::is_void_v<T>) return std::move(result).value();
}

}  // namespace pagedkv::tool
