// Reads what the machine is from CPUID and the files that Linux publishes.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "pagedkv/cpu.h"

namespace pagedkv {
namespace {

using Line = std::array<char, 256>;

struct CloseFile {
  void operator()(std::FILE* file) const noexcept { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

// The first line of a file without its newline; empty if there is none.
Line first_line(const char* path) noexcept {
  Line line = {};
  const File file(std::fopen(path, "r"));
  if (file == nullptr || std::fgets(line.data(), static_cast<int>(line.size()), file.get()) == nullptr) return {};
  line[std::strcspn(line.data(), "\n")] = '\0';
  return line;
}

#if defined(__x86_64__)
void read_model(std::array<char, 64>& model) noexcept {
  for (unsigned i = 0; i < 3; ++i) {
    std::array<unsigned, 4> words = {};
    if (__get_cpuid(0x80000002U + i, &words[0], &words[1], &words[2], &words[3]) == 0) return;
    std::memcpy(model.data() + sizeof(words) * i, words.data(), sizeof(words));
  }
}
#else
void read_model(std::array<char, 64>& model) noexcept {
  const Line line = first_line("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1");
  std::snprintf(model.data(), model.size(), "Arm, MIDR %.40s", line[0] != '\0' ? line.data() : "unknown");
}
#endif

// Bytes of the data or unified cache of that level, from "48K" or "2M".
std::size_t cache_bytes(char level) noexcept {
  for (int index = 0; index < 8; ++index) {
    const auto read = [index](const char* name) {
      std::array<char, 96> path = {};
      std::snprintf(path.data(), path.size(), "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, name);
      return first_line(path.data());
    };
    if (read("level")[0] != level || read("type")[0] == 'I') continue;
    const Line size = read("size");
    char* unit = nullptr;
    const unsigned long long count = std::strtoull(size.data(), &unit, 10);
    return static_cast<std::size_t>(count) << (*unit == 'K' ? 10 : *unit == 'M' ? 20 : 0);
  }
  return 0;
}

// Counts the numbers in a list such as "0-3,8".
int count_list(const char* text) noexcept {
  int count = 0;
  while (*text >= '0' && *text <= '9') {
    char* end = nullptr;
    const long first = std::strtol(text, &end, 10);
    const long last = *end == '-' ? std::strtol(end + 1, &end, 10) : first;
    count += static_cast<int>(last - first) + 1;
    text = *end == ',' ? end + 1 : end;
  }
  return count;
}

struct Machine {
  std::array<char, 64> model = {};
  CpuInfo info = {};

  Machine() noexcept {
    read_model(model);
    const unsigned threads = std::thread::hardware_concurrency();  // honours the affinity mask of the process
    const int nodes = count_list(first_line("/sys/devices/system/node/online").data());
    info = {.model = model[0] != '\0' ? model.data() : "unknown",
            .num_cpus = threads > 0 ? static_cast<int>(threads) : 1,
            .l1d_bytes = cache_bytes('1'),
            .l2_bytes = cache_bytes('2'),
            .l3_bytes = cache_bytes('3'),
            .num_numa_nodes = nodes > 0 ? nodes : 1};
  }
};

}  // namespace

const CpuInfo& cpu_info() noexcept {
  static const Machine machine;
  return machine.info;
}

}  // namespace pagedkv
