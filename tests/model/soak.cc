// pagedkv-soak: random scripts against the naive model of the whole cache, for hours, or one script from a file.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

#include "model/cache_model.h"
#include "model/cache_script.h"

namespace {

namespace testing = pagedkv::testing;
using Clock = std::chrono::steady_clock;

char crash_note[128];  // what to say if the library falls over

extern "C" void on_crash(int signal) {
  std::size_t length = 0;
  while (crash_note[length] != 0) ++length;
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, crash_note, length);
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

std::uint64_t seed_of(std::uint64_t seed, std::uint64_t index) { return testing::mix(seed + index * 0x9e3779b9U); }

int report(const testing::CacheScript& script, const std::string& difference, const std::string& path) {
  std::cout << "DIFFERENCE: " << difference << "; shrinking" << std::endl;
  const testing::CacheScript shrunk = testing::shrink_script(script);
  std::ostringstream text;
  text << "# " << testing::run_script(shrunk) << '\n' << shrunk;
  std::cout << text.str();
  if (!path.empty()) std::ofstream(path) << text.str();
  return 1;
}

int soak(double hours, std::uint64_t seed, std::uint64_t first, std::size_t num_ops, const std::string& path) {
  const auto begin = Clock::now();
  auto next_line = begin;
  std::uint64_t index = first;
  for (;; ++index) {
    const auto now = Clock::now();
    const double seconds = std::chrono::duration<double>(now - begin).count();
    if (now >= next_line || seconds >= hours * 3600) {
      next_line = now + std::chrono::seconds(30);
      std::cout << "seed " << seed << ": " << index - first << " scripts, " << (index - first) * num_ops
                << " operations, " << static_cast<std::int64_t>(seconds) << " s" << std::endl;
    }
    if (seconds >= hours * 3600) break;
    std::snprintf(crash_note, sizeof crash_note, "crashed: replay with --seed %llu --first %llu\n",
                  static_cast<unsigned long long>(seed), static_cast<unsigned long long>(index));
    const testing::CacheScript script = testing::random_script(seed_of(seed, index), num_ops);
    const std::string difference = testing::run_script(script);
    if (!difference.empty()) return report(script, difference, path);
  }
  std::cout << "no difference" << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Random operations on a KvCache against a naive model of it.");
  double hours = 0.001;
  std::uint64_t seed = 1, first = 0;
  std::size_t num_ops = 1000;
  std::string script_path, failure_path;
  app.add_option("--hours", hours, "how long");
  app.add_option("--seed", seed, "of all scripts");
  app.add_option("--first", first, "number of the first script");
  app.add_option("--ops", num_ops, "operations a script");
  app.add_option("--script", script_path, "run this script instead");
  app.add_option("--failure", failure_path, "write a shrunk script that fails here");
  CLI11_PARSE(app, argc, argv);
  for (const int signal : {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL}) std::signal(signal, on_crash);
  if (script_path.empty()) return soak(hours, seed, first, num_ops, failure_path);
  std::ifstream file(script_path);
  const std::string difference = testing::run_script(testing::parse_script(file));
  std::cout << (difference.empty() ? "no difference" : difference) << std::endl;
  return difference.empty() ? 0 : 1;
}
