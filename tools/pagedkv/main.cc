// Entry of the program `pagedkv`; everything it does is in run_tool, where tests can reach it.
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <string_view>

#include "tool.h"

namespace {

/// jemalloc, which `replay` measures when it is installed, can only be loaded at run time if the process was started
/// with room for its thread-local storage.
void restart_with_room_for_jemalloc(int argc, char** argv) {
  constexpr const char *kTunables = "GLIBC_TUNABLES", *kRoom = "glibc.rtld.optional_static_tls";
  if (argc < 2 || std::string_view(argv[1]) != "replay") return;
  const char* set = std::getenv(kTunables);
  const std::string tunables = set == nullptr ? "" : set;
  if (tunables.find(kRoom) != std::string::npos) return;  // restarted, or the user knows better
  for (int i = 2; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (!argument.ends_with("all") && !argument.ends_with("jemalloc")) continue;
    setenv(kTunables, (tunables + (tunables.empty() ? "" : ":") + kRoom + "=16384").c_str(), 1);
    execv("/proc/self/exe", argv);  // comes back only if it fails; then jemalloc is reported as not measured
    return;
  }
}

}  // namespace

int main(int argc, char** argv) {
  restart_with_room_for_jemalloc(argc, argv);
  return pagedkv::tool::run_tool(argc, argv);
}
