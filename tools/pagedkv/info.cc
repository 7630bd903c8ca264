// `pagedkv info`: what this build can do on this machine.
#include <fmt/format.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>

#include "commands.h"
#include "json_file.h"
#include "pagedkv/cpu.h"
#include "pagedkv/version.h"
#include "table.h"

namespace pagedkv::tool {
namespace {

struct Memory {
  std::uint64_t total_bytes = 0, available_bytes = 0, huge_page_bytes = 0;  ///< 0 = unknown.
};

/// Reads the lines "Name:   1234 kB" of /proc/meminfo.
Memory read_memory() {
  Memory memory;
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::uint64_t value = std::strtoull(line.c_str() + colon + 1, nullptr, 10) * 1024;
    const std::string name = line.substr(0, colon);
    if (name == "MemTotal") memory.total_bytes = value;
    if (name == "MemAvailable") memory.available_bytes = value;
    if (name == "Hugepagesize") memory.huge_page_bytes = value;
  }
  return memory;
}

/// "always", "madvise" or "never": what stands in brackets in the kernel's switch; "unknown" without one.
std::string transparent_huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  std::getline(file, line);
  const std::size_t open = line.find('['), close = line.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open) return "unknown";
  return line.substr(open + 1, close - open - 1);
}

Json to_json(const TargetInfo& active) {
  const CpuInfo& cpu = cpu_info();
  const Memory memory = read_memory();
  const char* forced = std::getenv("PAGEDKV_TARGET");
  Json target_list = Json::array();
  for (const TargetInfo& target : targets()) {
    target_list.push_back({{"name", target.name},
                           {"description", target.description},
                           {"available", target.available},
                           {"active", std::string_view(target.name) == active.name}});
  }
  return {{"version", version()},
          {"cpu",
           {{"model", cpu.model},
            {"cpus", cpu.num_cpus},
            {"numa_nodes", cpu.num_numa_nodes},
            {"l1d_bytes", cpu.l1d_bytes},
            {"l2_bytes", cpu.l2_bytes},
            {"l3_bytes", cpu.l3_bytes}}},
          {"targets", std::move(target_list)},
          {"active_target", active.name},
          {"forced_target", forced == nullptr || *forced == '\0' ? Json(nullptr) : Json(forced)},
          {"transparent_huge_pages", transparent_huge_pages()},
          {"huge_page_bytes", memory.huge_page_bytes},
          {"memory_bytes", memory.total_bytes},
          {"memory_available_bytes", memory.available_bytes}};
}

std::string bytes_or_unknown(std::uint64_t bytes) {
  return bytes == 0 ? "unknown" : with_bytes(static_cast<double>(bytes));
}

void print_text(const Json& json) {
  const Json& cpu = json["cpu"];
  fmt::print("pagedkv {}\n", json["version"].get<std::string>());
  fmt::print("CPU         {}\n", cpu["model"].get<std::string>());
  fmt::print("            {} CPUs, {} NUMA nodes, L1d {}, L2 {}, L3 {}\n", cpu["cpus"].get<int>(),
             cpu["numa_nodes"].get<int>(), bytes_or_unknown(cpu["l1d_bytes"]), bytes_or_unknown(cpu["l2_bytes"]),
             bytes_or_unknown(cpu["l3_bytes"]));
  fmt::print("memory      {}, {} available\n", bytes_or_unknown(json["memory_bytes"]),
             bytes_or_unknown(json["memory_available_bytes"]));
  fmt::print("huge pages  {} (transparent: {})\n", bytes_or_unknown(json["huge_page_bytes"]),
             json["transparent_huge_pages"].get<std::string>());
  fmt::print("targets     kernels for these instruction sets were built, best first:\n");
  for (const Json& target : json["targets"]) {
    std::string state = target["available"] ? "available" : "not on this machine";
    if (target["active"]) {
      state = json["forced_target"].is_null() ? "active" : "active, forced by PAGEDKV_TARGET";
    }
    fmt::print("            {:<8} {} [{}]\n", target["name"].get<std::string>(),
               target["description"].get<std::string>(), state);
  }
}

}  // namespace

Command add_info(CLI::App& root) {
  CLI::App* app = root.add_subcommand("info", "Version, CPU, kernel targets, huge pages, memory");
  app->description(
      "Says what this build can do on this machine: version, CPU and caches, memory and huge pages, and the kernel\n"
      "targets: which were built, which can run here, and which one is used. The environment variable PAGEDKV_TARGET\n"
      "forces one by name; a name that is unknown or cannot run here is an error.");
  auto json_path = std::make_shared<std::string>();
  app->add_option("--json", *json_path, "Write it there as JSON as well (- = stdout)")->type_name("FILE");
  return {app, [json_path] {
            const TargetInfo* active = value_or_bad_input(active_target(), "PAGEDKV_TARGET");
            const Json json = to_json(*active);
            if (*json_path != "-") print_text(json);
            if (!json_path->empty()) write_json(*json_path, json);
            return kDone;
          }};
}

}  // namespace pagedkv::tool
