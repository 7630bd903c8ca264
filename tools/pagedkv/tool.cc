// The frame of the program: which subcommands there are, and how errors leave it.
#include "tool.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <vector>

#include "commands.h"
#include "pagedkv/version.h"

namespace pagedkv::tool {
namespace {

constexpr const char* kDescription =
    "pagedkv: a paged KV cache for CPU inference servers, from the command line.\n"
    "\n"
    "Every command says more with --help, for example `pagedkv replay --help`.";
constexpr const char* kFooter =
    "Exit codes: 0 done; 1 a check failed; 2 bad usage or bad input, said in one line on stderr.";

/// Says it in one line.
ExitCode complain(std::string message) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  fmt::print(stderr, "pagedkv: {}\n", message);
  return kBadInput;
}

std::vector<Command> add_commands(CLI::App& root) {
  return {add_replay(root), add_conformance(root), add_bench(root), add_info(root)};
}

ExitCode parse_and_run(int argc, const char* const* argv) {
  CLI::App root(kDescription, "pagedkv");
  root.footer(kFooter);
  root.set_version_flag("--version", std::string("pagedkv ") + version(), "Print the version and leave");
  root.require_subcommand(1);
  root.get_formatter()->column_width(34);
  const std::vector<Command> commands = add_commands(root);
  try {
    root.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {  // --help or --version
      root.exit(error);
      return kDone;
    }
    return complain(fmt::format("{} (see --help)", error.what()));
  }
  for (const Command& command : commands) {
    if (command.parser->parsed()) return command.run();
  }
  return complain("no command given (see --help)");
}

}  // namespace

int run_tool(int argc, const char* const* argv) noexcept {
  try {
    const ExitCode code = parse_and_run(argc, argv);
    // A full disk may show no earlier than here, and a report that is cut off must not pass for a whole one.
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) return complain("cannot write to stdout");
    return code;
  } catch (const BadInput& error) {
    return complain(error.what());
  } catch (const CheckFailed& error) {
    complain(error.what());
    return kCheckFailed;
  } catch (const std::bad_alloc&) {
    std::fputs("pagedkv: out of memory\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pagedkv: %s\n", error.what());
  }
  return kBadInput;
}

}  // namespace pagedkv::tool
