// `pagedkv bench`: hands over to the benchmark that is named.
#include <vector>

#include "bench/parts.h"
#include "commands.h"

namespace pagedkv::tool {

Command add_bench(CLI::App& root) {
  CLI::App* app = root.add_subcommand("bench", "Measure attention or the pool on this machine");
  app->require_subcommand(1);
  const std::vector<Command> parts = {add_bench_attention(*app), add_bench_pool(*app)};
  return {app, [parts] {
            for (const Command& part : parts) {
              if (part.parser->parsed()) return part.run();
            }
            throw BadInput("no benchmark named (see bench --help)");
          }};
}

}  // namespace pagedkv::tool
