// Times one kernel by itself, without plan or scheduler, beside a raw read of the same memory in the same minute.
//
//   kernel_bench decode  [q_heads kv_heads head_dim batch context page_size threads [order]]
//   kernel_bench prefill [q_heads kv_heads head_dim query_len context page_size threads]
//
// Decode reports the kernel's read rate as a fraction of the raw one; prefill reports GFLOP/s (visible pairs only) as a
// fraction of the peak of the matrix unit on random data. `order` is random, linear or cached (one task again and
// again). Medians of interleaved rounds; rounds in which a thread lost its core are dropped.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/amx.h"
#include "format/convert.h"
#include "kernels/kernel_table.h"
#include "memory/os_memory.h"

namespace pagedkv::bench {
namespace {

using kernels::AttendKernel;
using kernels::AttendParams;
using kernels::AttendTask;

struct Shape {
  std::uint32_t q_heads = 32, kv_heads = 8, head_dim = 128;
  std::int32_t batch = 8, context = 4096, page_size = 16, query_len = 1;
  int num_threads = 2;
  bool random_order = true, cached = false;
};

double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}
double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Threads that start together; seconds of the slowest, or 0 if one of them was off its core for more than 2 %.
class Team {
 public:
  explicit Team(int size) : size_(size), wall_(static_cast<std::size_t>(size)), cpu_(wall_) {
    for (int i = 1; i < size; ++i) threads_.emplace_back([this, i] { serve(i); });
  }
  ~Team() {
    stop_ = true, ++round_;
    for (std::thread& t : threads_) t.join();
  }
  double run(const std::function<void(int)>& work) {
    work_ = &work, ready_ = 0, done_ = 0;
    ++round_;
    one(0);
    while (done_ < size_) _mm_pause_portable();
    double slowest = 0;
    bool clean = true;
    for (std::size_t i = 0; i < wall_.size(); ++i) {
      slowest = std::max(slowest, wall_[i]);
      clean = clean && cpu_[i] > 0.98 * wall_[i];
    }
    return clean ? slowest : 0;
  }

 private:
  static void _mm_pause_portable() { __builtin_ia32_pause(); }
  void serve(int index) {
    for (int seen = 0;;) {
      while (round_ == seen) _mm_pause_portable();
      seen = round_;
      if (stop_) return;
      one(index);
    }
  }
  void one(int index) {
    ++ready_;
    while (ready_ < size_) _mm_pause_portable();
    const double w = wall_seconds(), c = thread_seconds();
    (*work_)(index);
    wall_[static_cast<std::size_t>(index)] = wall_seconds() - w;
    cpu_[static_cast<std::size_t>(index)] = thread_seconds() - c;
    ++done_;
  }

  int size_;
  std::vector<double> wall_, cpu_;
  std::vector<std::thread> threads_;
  std::atomic<int> round_{0}, ready_{0}, done_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(int)>* work_ = nullptr;
};

struct Pool {
  std::byte* base;
  std::size_t bytes;
  explicit Pool(std::size_t n) : bytes((n + (2u << 20) - 1) >> 21 << 21) {
    base = memory::system_memory().reserve(bytes, 2u << 20).value();
    if (!memory::system_memory().commit(base, bytes)) std::exit(1);
    memory::system_memory().advise_huge_pages(base, bytes);
  }
  void fill_bf16(unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<std::uint16_t> table(1 << 16);
    for (std::uint16_t& x : table) x = format::to_bf16(normal(random)).bits;
    std::uint32_t x = seed;
    auto* to = reinterpret_cast<std::uint16_t*>(base);
    for (std::size_t i = 0; i < bytes / 2; ++i) to[i] = table[(x = x * 1664525u + 1013904223u) >> 16];
  }
};

double median(std::vector<double> v) {
  if (v.empty()) return 0;
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

__attribute__((target("avx512f"))) std::uint64_t read_all(const std::byte* from, std::size_t bytes) {
  using Vector = std::uint64_t __attribute__((vector_size(64)));
  Vector a{}, b{}, c{}, d{};
  for (std::size_t i = 0; i < bytes; i += 256) {
    const auto* p = reinterpret_cast<const Vector*>(from + i);
    a ^= p[0], b ^= p[1], c ^= p[2], d ^= p[3];
  }
  a ^= b ^ c ^ d;
  return a[0] ^ a[3];
}
std::atomic<std::uint64_t> sink;

/// Pages [kv_head][K, V][token][dim], one layer; tasks of every (sequence, kv head).
struct Layer {
  Shape shape;
  Pool pool, queries, out;
  std::vector<std::int32_t> table;
  AttendParams params{};
  std::vector<AttendTask> tasks;

  explicit Layer(const Shape& s, std::size_t min_bytes)
      : shape(s),
        pool(std::max(min_bytes, page_bytes() * pages_a_sequence() * static_cast<std::size_t>(s.batch))),
        queries(static_cast<std::size_t>(s.batch * s.query_len) * s.q_heads * s.head_dim * 2),
        out(queries.bytes) {
    pool.fill_bf16(1), queries.fill_bf16(2), out.fill_bf16(3);
    table.resize(pool.bytes / page_bytes());
    std::iota(table.begin(), table.end(), 0);
    if (s.random_order) std::shuffle(table.begin(), table.end(), std::mt19937(7));
    const auto page = static_cast<std::int64_t>(page_bytes()), row = std::int64_t{s.head_dim} * 2;
    params.num_q_heads = s.q_heads, params.num_kv_heads = s.kv_heads, params.group = s.q_heads / s.kv_heads;
    params.head_dim = params.v_head_dim = s.head_dim, params.page_size = static_cast<std::uint32_t>(s.page_size);
    params.kv_dtype = params.q_dtype = params.out_dtype = DType::bf16;
    params.causal = true, params.window_left = -1, params.sm_scale = 1 / std::sqrt(static_cast<float>(s.head_dim));
    params.q = queries.base, params.out = out.base;
    params.pages = {pool.base,
                    pool.base + s.page_size * row,
                    page,
                    2 * s.page_size * row,
                    row,
                    page,
                    2 * s.page_size * row,
                    row,
                    static_cast<std::int64_t>(table.size())};
  }
  std::size_t page_bytes() const {
    return std::size_t{4} * shape.kv_heads * shape.head_dim * static_cast<std::size_t>(shape.page_size);
  }
  std::size_t pages_a_sequence() const {
    return static_cast<std::size_t>((shape.context + shape.page_size - 1) / shape.page_size);
  }
  std::size_t num_sequences() const { return table.size() / pages_a_sequence(); }

  AttendTask task(std::size_t sequence, std::uint32_t head, std::int32_t row, std::int32_t rows) const {
    AttendTask t{};
    t.page_table = table.data() + sequence % num_sequences() * pages_a_sequence();
    t.kv_end = shape.context - shape.query_len + row + rows, t.kv_head = head, t.num_rows = rows;
    t.first_row = static_cast<std::int32_t>(sequence) % shape.batch * shape.query_len + row;
    t.first_pos = shape.context - shape.query_len + row, t.first_part = true;
    return t;
  }
};

const AttendKernel& kernel_for(const Layer& layer) {
  const AttendKernel* kernel = kernels::find_amx_attend(layer.params, layer.shape.query_len);
  if (kernel == nullptr) fmt::print("no AMX kernel takes this shape\n"), std::exit(1);
  return *kernel;
}

#if defined(__x86_64__)
/// Tile products on random operands in registers, four chains; floating-point operations done.
__attribute__((target("amx-tile,amx-bf16"))) double tile_products(int repetitions) {
  struct alignas(64) {
    std::uint8_t palette = 1, rest[15] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  alignas(64) std::uint16_t operands[4 * 512];
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (std::uint16_t& x : operands) x = format::to_bf16(normal(random)).bits;
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  asm volatile(
      "tileloadd (%0,%1,1), %%tmm4\n tileloadd 1024(%0,%1,1), %%tmm5\n tileloadd 2048(%0,%1,1), %%tmm6\n"
      "tileloadd 3072(%0,%1,1), %%tmm7\n" ::"r"(operands),
      "r"(std::int64_t{64})
      : "memory");
  const auto products = [&](int count) __attribute__((target("amx-tile,amx-bf16"))) {
    for (int i = 0; i < count; ++i) {
      asm volatile(
          "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
          "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n tdpbf16ps %%tmm7, %%tmm5, %%tmm3\n" ::
              : "memory");
    }
  };
  products(repetitions);
  asm volatile("tilerelease" ::: "memory");
  return repetitions * 4.0 * 16 * 16 * 32 * 2;
}
#endif

/// One kv head of one sequence a round and thread, cut into tasks of the kernel's rows; the peak before and after.
int prefill(const Shape& shape) {
  const Layer layer(shape, 0);
  const AttendKernel& kernel = kernel_for(layer);
  Team team(shape.num_threads);
  const auto num_threads = static_cast<std::size_t>(shape.num_threads);
  std::vector<Pool> scratch;
  for (std::size_t i = 0; i < num_threads; ++i) {
    scratch.emplace_back(kernel.scratch_bytes(layer.params, kernel.max_rows));
    scratch.back().fill_bf16(9);
  }
  double pairs = 0;
  for (std::int32_t r = 0; r < shape.query_len; ++r) pairs += shape.context - shape.query_len + r + 1;
  const double work = pairs * 4 * shape.head_dim * layer.params.group * static_cast<double>(num_threads);
  std::vector<double> rate, peak_rate, ratio;
  const double begin = wall_seconds();
  for (std::uint32_t round = 0; rate.size() < 100 && wall_seconds() - begin < 3; ++round) {
    double peak_work = 0;
    const auto peak = [&](int thread) {
      const double done = tile_products(8000);
      if (thread == 0) peak_work = done * shape.num_threads;
    };
    const double before = team.run(peak);
    const double own = team.run([&](int thread) {
      const std::uint32_t head =
          (round * static_cast<std::uint32_t>(shape.num_threads) + static_cast<unsigned>(thread)) % shape.kv_heads;
      for (std::int32_t row = 0; row < shape.query_len; row += kernel.max_rows) {
        const AttendTask task = layer.task(0, head, row, std::min(kernel.max_rows, shape.query_len - row));
        kernel.attend(layer.params, task, scratch[static_cast<std::size_t>(thread)].base);
      }
    });
    const double after = team.run(peak);
    if (before == 0 || own == 0 || after == 0) continue;
    rate.push_back(work / own * 1e-9), peak_rate.push_back(2 * peak_work / (before + after) * 1e-9);
    ratio.push_back(rate.back() / peak_rate.back());
  }
  std::sort(ratio.begin(), ratio.end());
  fmt::print(
      "prefill {}/{}x{} queries {} context {} page {} threads {}: {:.0f} GFLOP/s, peak {:.0f}, fraction {:.3f} (p25 "
      "{:.3f}"
      " p75 {:.3f}, {} rounds)\n",
      shape.q_heads, shape.kv_heads, shape.head_dim, shape.query_len, shape.context, shape.page_size, shape.num_threads,
      median(rate), median(peak_rate), median(ratio), ratio.empty() ? 0 : ratio[ratio.size() / 4],
      ratio.empty() ? 0 : ratio[ratio.size() * 3 / 4], rate.size());
  return 0;
}

/// Runs tasks [from, to), each told its successor.
void run_tasks(const AttendKernel& kernel, const Layer& layer, std::vector<AttendTask>& tasks, std::byte* scratch) {
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    tasks[i].next = i + 1 < tasks.size() ? &tasks[i + 1] : nullptr;
    kernel.attend(layer.params, tasks[i], scratch);
  }
}

int decode(const Shape& shape) {
  const Layer layer(shape, shape.cached ? 0 : std::size_t{1} << 30);
  const AttendKernel& kernel = kernel_for(layer);
  Team team(shape.num_threads);
  const auto num_threads = static_cast<std::size_t>(shape.num_threads);
  std::vector<Pool> scratch;
  for (std::size_t i = 0; i < num_threads; ++i) scratch.emplace_back(kernel.scratch_bytes(layer.params, 1));
  // A round is short (8 MiB a thread), so that rounds fit between the time slices of whatever else runs here.
  const std::size_t task_bytes = static_cast<std::size_t>(shape.context) * shape.head_dim * 4;
  const std::size_t all_tasks = layer.num_sequences() * shape.kv_heads / num_threads;
  const std::size_t tasks_a_thread = std::clamp<std::size_t>((8u << 20) / task_bytes, 1, shape.cached ? 32 : all_tasks);
  const std::size_t bytes = tasks_a_thread * task_bytes;
  std::vector<double> raw, own, ratio;
  std::vector<std::vector<AttendTask>> tasks(num_threads);
  const double begin = wall_seconds();
  for (std::size_t round = 0; raw.size() < 200 && wall_seconds() - begin < 4; ++round) {
    const double raw_s = team.run([&](int thread) {
      const auto t = static_cast<std::size_t>(thread);
      const std::size_t half = layer.pool.bytes / num_threads, room = half - std::min(bytes, half);
      const std::size_t offset = room == 0 ? 0 : (round * bytes) % room / 4096 * 4096;
      for (std::size_t left = bytes; left >= 256; left -= std::min(left, half)) {
        sink = read_all(layer.pool.base + t * half + offset, std::min(left, half) / 256 * 256);
      }
    });
    for (std::size_t t = 0; t < num_threads; ++t) {
      tasks[t].clear();
      for (std::size_t i = 0; i < tasks_a_thread; ++i) {
        const std::size_t index = shape.cached ? 0 : t * all_tasks + (round * tasks_a_thread + i) % all_tasks;
        tasks[t].push_back(
            layer.task(index / shape.kv_heads, static_cast<std::uint32_t>(index % shape.kv_heads), 0, 1));
      }
    }
    const double own_s = team.run([&](int thread) {
      const auto t = static_cast<std::size_t>(thread);
      run_tasks(kernel, layer, tasks[t], scratch[t].base);
    });
    if (raw_s == 0 || own_s == 0) continue;
    const double gb = static_cast<double>(bytes * num_threads) * 1e-9;
    raw.push_back(gb / raw_s), own.push_back(gb / own_s), ratio.push_back(raw_s / own_s);
  }
  fmt::print(
      "decode {}/{}x{} batch {} context {} page {} threads {} {}: kernel {:.1f} GB/s raw {:.1f} GB/s fraction {:.3f}"
      " (p25 {:.3f} p75 {:.3f}, {} rounds)\n",
      shape.q_heads, shape.kv_heads, shape.head_dim, shape.batch, shape.context, shape.page_size, shape.num_threads,
      shape.random_order ? "random" : "linear", median(own), median(raw), median(own) / median(raw),
      [&] {
        std::sort(ratio.begin(), ratio.end());
        return ratio.empty() ? 0 : ratio[ratio.size() / 4];
      }(),
      ratio.empty() ? 0 : ratio[ratio.size() * 3 / 4], raw.size());
  return 0;
}

}  // namespace
}  // namespace pagedkv::bench

int main(int argc, char** argv) {
  const std::string phase = argc > 1 ? argv[1] : "";
  if ((phase != "decode" && phase != "prefill") || !pagedkv::cpu::amx_usable()) {
    fmt::print("usage: kernel_bench decode|prefill [numbers], see the head of kernel_bench.cc; needs AMX\n");
    return 2;
  }
  const auto number = [&](int index, int fallback) { return argc > index ? std::atoi(argv[index]) : fallback; };
  pagedkv::bench::Shape shape;
  shape.q_heads = static_cast<std::uint32_t>(number(2, 32)), shape.kv_heads = static_cast<std::uint32_t>(number(3, 8));
  shape.head_dim = static_cast<std::uint32_t>(number(4, 128));
  shape.context = number(6, 4096), shape.page_size = number(7, 16), shape.num_threads = number(8, 2);
  shape.random_order = argc <= 9 || std::string(argv[9]) != "linear";
  shape.cached = argc > 9 && std::string(argv[9]) == "cached";
  if (phase == "prefill") {
    shape.query_len = number(5, 512), shape.batch = 1;
    return pagedkv::bench::prefill(shape);
  }
  shape.batch = number(5, 8);
  return pagedkv::bench::decode(shape);
}
