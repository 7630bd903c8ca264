// oneDNN matrix products, cut into fixed tiles of columns and rows that oneTBB spreads over the cores.
#include "model/linear.h"

#include <dlfcn.h>
#include <tbb/blocked_range.h>
#include <tbb/enumerable_thread_specific.h>
#include <tbb/parallel_for.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>

#include "model/bf16.h"

namespace serving {
namespace {

using dnnl::memory;

// Columns of one task: wide enough for a packed panel to pay, narrow enough to feed a few cores from one matrix.
constexpr std::size_t kTileColumns = 256;
constexpr std::size_t kBf16TileRows = 16;
// Row counts that get a kernel of their own, so that a changing batch does not generate one a step. oneDNN 2.6
// multiplies 6 rows at a time with AVX2, 8 with AVX-512; where 4, 5 or 6 remain it sums each element in the same order,
// where 1 to 3 remain not always.
constexpr std::array<std::size_t, 10> kRowCounts = {4, 5, 6, 12, 16, 24, 28, 36, 48, kMaxTileRows};
// Below this many multiplications a product runs on the caller's thread: a task costs a few microseconds.
constexpr std::size_t kSerialMultiplications = 1U << 18;

const dnnl::engine& engine() {
  static const dnnl::engine the_engine(dnnl::engine::kind::cpu, 0);
  return the_engine;
}

// Keeps oneDNN on the calling thread: two runtimes would fight for the cores. It brings its OpenMP runtime along, g++'s
// or clang's, whose entry point is the same; a oneDNN built for oneTBB has none, and shares our threads.
void stay_on_this_thread() {
  static const auto set_num_threads = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  if (set_num_threads != nullptr) set_num_threads(1);
}

// What each thread needs to run a product.
struct Worker {
  dnnl::stream stream{engine()};
  std::vector<std::byte> scratchpad;
  std::vector<float> result;  // [rows][columns] of a bf16 tile.
};
Worker& worker() {
  static tbb::enumerable_thread_specific<Worker> workers;
  return workers.local();
}

// `count` values rounded to bf16, and zeros up to `room`.
std::vector<float> rounded_to_bf16(const float* values, std::size_t count, std::size_t room) {
  std::vector<float> rounded(room);
  std::transform(values, values + count, rounded.begin(), [](float value) { return from_bf16(to_bf16(value)); });
  return rounded;
}

memory::desc row_major(std::size_t rows, std::size_t cols, memory::data_type type, std::size_t stride) {
  return {{static_cast<memory::dim>(rows), static_cast<memory::dim>(cols)},
          type,
          memory::dims{static_cast<memory::dim>(stride), 1}};
}

// oneDNN multiplies bf16 from AVX-512 on.
bool multiplies_bf16() {
  static const bool does = [] {
    const memory::desc square = row_major(16, 16, memory::data_type::bf16, 16);
    try {
      const dnnl::matmul::desc product(square, square, row_major(16, 16, memory::data_type::f32, 16));
      return dnnl::matmul::primitive_desc(product, engine()).get() != nullptr;
    } catch (const dnnl::error&) {
      return false;
    }
  }();
  return does;
}

}  // namespace

struct Linear::Impl {
  struct Kernel {
    dnnl::matmul::primitive_desc desc;
    dnnl::matmul primitive;
  };
  struct Tile {
    std::size_t first_column = 0, columns = 0;
    memory weights;  // Packed as oneDNN likes it.
    mutable std::array<std::once_flag, kRowCounts.size()> made;
    mutable std::array<Kernel, kRowCounts.size()> kernels;
  };

  std::size_t out_dim, in_dim;
  memory::data_type type;
  bool rounds_inputs;  // to bf16, but multiplies f32: where oneDNN has no bf16 products
  std::vector<std::unique_ptr<Tile>> tiles;

  [[nodiscard]] bool is_bf16() const { return type == memory::data_type::bf16; }

  Kernel make_kernel(std::size_t rows, std::size_t columns, const memory::desc& weights) const {
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    // oneDNN 2.6 has its AMX kernels for dense results alone: four times as fast, the copy included.
    const std::size_t stride = is_bf16() ? columns : out_dim;
    const dnnl::matmul::desc desc(row_major(rows, in_dim, type, in_dim), weights,
                                  row_major(rows, columns, memory::data_type::f32, stride));
    dnnl::matmul::primitive_desc primitive_desc(desc, attr, engine());
    return {primitive_desc, dnnl::matmul(primitive_desc)};
  }

  void add_tile(std::span<const float> weights, std::size_t first, std::size_t columns) {
    auto tile = std::make_unique<Tile>();
    tile->first_column = first;
    tile->columns = columns;
    const memory::dims shape = {static_cast<memory::dim>(in_dim), static_cast<memory::dim>(columns)};
    const Kernel chooser = make_kernel(is_bf16() ? kBf16TileRows : kMaxTileRows, columns,
                                       memory::desc(shape, type, memory::format_tag::any));
    tile->weights = memory(chooser.desc.weights_desc(), engine());
    // [columns][in_dim] row-major is [in_dim][columns] with tag `ba`. oneDNN takes no pointer to const.
    memory plain(memory::desc(shape, memory::data_type::f32, memory::format_tag::ba), engine(),
                 const_cast<float*>(weights.data() + first * in_dim));
    dnnl::reorder(plain, tile->weights).execute(worker().stream, plain, tile->weights);
    worker().stream.wait();
    tiles.push_back(std::move(tile));
  }

  // One tile of the product: `rows` (at most kMaxTileRows) rows from x, into y.
  void run(const Tile& tile, const void* x, std::size_t rows, float* y) const {
    const auto slot =
        static_cast<std::size_t>(std::lower_bound(kRowCounts.begin(), kRowCounts.end(), rows) - kRowCounts.begin());
    std::call_once(tile.made[slot],
                   [&] { tile.kernels[slot] = make_kernel(kRowCounts[slot], tile.columns, tile.weights.get_desc()); });
    const Kernel& kernel = tile.kernels[slot];
    Worker& self = worker();
    self.scratchpad.resize(std::max(self.scratchpad.size(), kernel.desc.scratchpad_desc().get_size()));
    const memory src(kernel.desc.src_desc(), engine(), const_cast<void*>(x));
    y += tile.first_column;
    if (is_bf16()) self.result.resize(std::max(self.result.size(), rows * tile.columns));
    const memory dst(kernel.desc.dst_desc(), engine(), is_bf16() ? self.result.data() : y);
    const memory scratch(kernel.desc.scratchpad_desc(), engine(), self.scratchpad.data());
    stay_on_this_thread();
    kernel.primitive.execute(
        self.stream,
        {{DNNL_ARG_SRC, src}, {DNNL_ARG_WEIGHTS, tile.weights}, {DNNL_ARG_DST, dst}, {DNNL_ARG_SCRATCHPAD, scratch}});
    self.stream.wait();
    if (!is_bf16()) return;
    for (std::size_t row = 0; row < rows; ++row) {
      std::copy_n(self.result.data() + row * tile.columns, tile.columns, y + row * out_dim);
    }
  }
};

Linear::Linear(std::span<const float> weights, std::size_t out_dim, std::size_t in_dim, WeightType type)
    : impl_(std::make_unique<Impl>()) {
  stay_on_this_thread();
  impl_->out_dim = out_dim;
  impl_->in_dim = in_dim;
  impl_->type = type == WeightType::kBf16 && multiplies_bf16() ? memory::data_type::bf16 : memory::data_type::f32;
  impl_->rounds_inputs = type == WeightType::kBf16 && !impl_->is_bf16();
  std::vector<float> rounded;
  if (impl_->rounds_inputs) {
    rounded = rounded_to_bf16(weights.data(), weights.size(), weights.size());
    weights = rounded;
  }
  for (std::size_t first = 0; first < out_dim; first += kTileColumns) {
    impl_->add_tile(weights, first, std::min(kTileColumns, out_dim - first));
  }
}

Linear::Linear(Linear&&) noexcept = default;
Linear& Linear::operator=(Linear&&) noexcept = default;
Linear::~Linear() = default;
std::size_t Linear::in_dim() const noexcept { return impl_->in_dim; }
std::size_t Linear::out_dim() const noexcept { return impl_->out_dim; }

void Linear::multiply(const float* x, std::size_t rows, float* y) const {
  const bool is_bf16 = impl_->is_bf16();
  const std::size_t tile_rows = is_bf16 ? kBf16TileRows : kMaxTileRows;
  std::vector<std::uint16_t> narrow;
  if (is_bf16) {
    const std::size_t whole = (rows + tile_rows - 1) / tile_rows * tile_rows;
    narrow.resize(whole * impl_->in_dim);  // Rows of padding are zero.
    std::transform(x, x + rows * impl_->in_dim, narrow.begin(), to_bf16);
  }
  std::vector<float> rounded;
  if (impl_->rounds_inputs) {
    rounded = rounded_to_bf16(x, rows * impl_->in_dim, padded_rows(rows) * impl_->in_dim);
    x = rounded.data();
  }
  const std::size_t row_tiles = (rows + tile_rows - 1) / tile_rows;
  const std::size_t tasks = row_tiles * impl_->tiles.size();
  const auto run_task = [&](std::size_t task) {
    const std::size_t first_row = task % row_tiles * tile_rows;
    const void* source = is_bf16 ? static_cast<const void*>(narrow.data() + first_row * impl_->in_dim)
                                 : static_cast<const void*>(x + first_row * impl_->in_dim);
    const std::size_t count = is_bf16 ? tile_rows : std::min(tile_rows, rows - first_row);
    impl_->run(*impl_->tiles[task / row_tiles], source, count, y + first_row * impl_->out_dim);
  };
  if (tasks == 1 || rows * impl_->in_dim * impl_->out_dim < kSerialMultiplications) {
    for (std::size_t task = 0; task < tasks; ++task) run_task(task);
  } else {
    tbb::parallel_for(std::size_t{0}, tasks, run_task);
  }
}

}  // namespace serving
