// AttentionPlan: checks, schedules and runs one ragged batch.
#include <tbb/task_group.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "attention/batch.h"
#include "attention/parallel.h"
#include "attention/schedule.h"
#include "core/align.h"
#include "cpu/targets.h"
#include "kernels/merge.h"
#include "pagedkv/attention.h"
#include "pagedkv/cpu.h"

namespace pagedkv {
namespace {

// A call that computes for less than this is over before another thread has woken up.
constexpr double kInlineSeconds = 20e-6, kBytesPerSecond = 10e9, kFlopsPerSecond = 50e9;

struct FreeAligned {
  void operator()(std::byte* memory) const noexcept { ::operator delete[](memory, std::align_val_t{kCacheLineBytes}); }
};
using AlignedBytes = std::unique_ptr<std::byte[], FreeAligned>;

constexpr Error kNoMemory = {Errc::kOutOfMemory, "no memory for the bookkeeping of a plan"};

constexpr std::int64_t kSparePages = 8;

constexpr std::size_t kNoTask = std::numeric_limits<std::size_t>::max();

/// The task that a lane has claimed and not begun, kNoTask between runs. Lanes that find no other may take it.
struct Claim {
  std::atomic<std::size_t> task{kNoTask};
};

/// A schedule, its copy of the page tables, and where the workspace's parts are.
struct Planned {
  AttentionConfig config = {};        // without its spans and its target
  kernels::AttendParams params = {};  // q, out, lse and pages are null here
  std::vector<float> sinks, slopes;
  const TargetInfo* target = nullptr;
  std::vector<std::int32_t> qo_indptr;
  std::vector<attention::PageTable> tables;  // one a sequence
  std::vector<std::int32_t> page_ids;
  std::int64_t page_id_limit = 0;  // one more than the largest id
  const std::byte* mask = nullptr;
  attention::Schedule schedule, spare;  // `spare` lends its memory to the next `extend`

  AlignedBytes owned_workspace;
  std::span<std::byte> workspace;
  float* partial_out = nullptr;                             // [num_states][v_head_dim]
  float* partial_lse = nullptr;                             // [num_states]
  std::byte* scratch = nullptr;                             // [num_lanes][lane_bytes]
  std::unique_ptr<std::atomic<std::int32_t>[]> units_left;  // [merges][num_kv_heads]
  std::unique_ptr<Claim[]> claims;                          // [num_lanes], at least one

  Result<void> build(const AttentionConfig& layer, const AttentionBatch& batch);
  Result<void> extend(const AttentionBatch& batch);
  Result<void> place(std::span<std::byte> memory) noexcept;
  [[nodiscard]] std::size_t workspace_bytes() const noexcept {
    return partial_out_bytes() + partial_lse_bytes() + num_lanes() * lane_bytes();
  }
  [[nodiscard]] std::size_t num_tasks() const noexcept { return schedule.units.size() * params.num_kv_heads; }
  [[nodiscard]] std::size_t num_lanes() const noexcept {
    return std::min(num_tasks(), static_cast<std::size_t>(std::max(cpu_info().num_cpus, 4)));
  }
  [[nodiscard]] std::size_t num_rows() const noexcept { return static_cast<std::size_t>(qo_indptr.back()); }
  /// Of one lane: the scratch of its kernel, then the states of sinks and of windows, [2][sink_states][v_head_dim] and
  /// [2][sink_states].
  [[nodiscard]] std::size_t lane_bytes() const noexcept {
    return schedule.scratch_bytes +
           round_up(2 * schedule.sink_states * (params.v_head_dim + 1) * sizeof(float), kCacheLineBytes);
  }
  [[nodiscard]] double seconds() const noexcept;

 private:
  [[nodiscard]] std::size_t partial_out_bytes() const noexcept {
    return round_up(schedule.num_states * params.v_head_dim * sizeof(float), kCacheLineBytes);
  }
  [[nodiscard]] std::size_t partial_lse_bytes() const noexcept {
    return round_up(schedule.num_states * sizeof(float), kCacheLineBytes);
  }
  Result<void> rebuild(const AttentionBatch& batch);
  void copy_pages(const AttentionBatch& batch);
  void write_new_pages(const AttentionBatch& batch) noexcept;
  void count_new_pages(const AttentionBatch& batch) noexcept;
  void count_ids(const std::int32_t* ids, std::int64_t count) noexcept;
  [[nodiscard]] attention::PlannedBatch planned(const AttentionBatch& batch) const noexcept {
    return {config, batch, params, cpu::target_of(*target), tables, page_ids.data()};
  }
};

/// One run: hands (unit, kv head) tasks to lanes, a lane being a thread at work with scratch of its own.
class AttentionRun {
 public:
  AttentionRun(const Planned& plan, const kernels::AttendParams& params) noexcept
      : plan_(plan),
        params_(params),
        unwindowed_(params),
        write_row_(kernels::find_write_row(cpu::target_of(*plan.target))),
        num_tasks_(plan.num_tasks()),
        num_lanes_(plan.num_lanes()) {
    unwindowed_.window_left = -1;
    const std::size_t heads = params.num_kv_heads;
    for (std::size_t m = 0; m < plan.schedule.merges.size(); ++m) {
      for (std::size_t h = 0; h < heads; ++h) {
        plan.units_left[m * heads + h].store(plan.schedule.merges[m].num_units, std::memory_order_relaxed);
      }
    }
  }

  /// Computes tasks until none is left. A lane claims a task before it begins the one at hand, whose kernel then
  /// prefetches the first keys of the claimed one. What others have claimed and not begun is taken at the end, so that
  /// a lane waits for no more than the rest of one task.
  void lane(std::size_t index) noexcept {
    std::byte* const scratch = plan_.scratch + index * plan_.lane_bytes();
    std::atomic<std::size_t>& claimed = plan_.claims[index].task;
    for (std::size_t at = claim(); at != kNoTask || (at = take_claimed()) != kNoTask;
         at = claimed.exchange(kNoTask, std::memory_order_relaxed)) {
      if (tbb::is_current_task_group_canceling()) return;
      kernels::AttendTask now = task(at), ahead;
      if (const std::size_t next = claim(); next != kNoTask) {
        ahead = task(next);
        now.next = &ahead;
        claimed.store(next, std::memory_order_relaxed);
      }
      attend(unit(at), now, scratch);
      done(at);
    }
  }

  [[nodiscard]] bool is_complete() const noexcept { return done_.load(std::memory_order_acquire) == num_tasks_; }

 private:
  /// The next task of the schedule, or kNoTask.
  std::size_t claim() noexcept {
    const std::size_t at = next_.fetch_add(1, std::memory_order_relaxed);
    return at < num_tasks_ ? at : kNoTask;
  }
  /// A task that some lane has claimed and not begun, or kNoTask. Its index is all that changes hands.
  std::size_t take_claimed() noexcept {
    for (std::size_t i = 0; i < num_lanes_; ++i) {
      std::atomic<std::size_t>& claimed = plan_.claims[i].task;
      if (claimed.load(std::memory_order_relaxed) == kNoTask) continue;
      if (const std::size_t at = claimed.exchange(kNoTask, std::memory_order_relaxed); at != kNoTask) return at;
    }
    return kNoTask;
  }
  [[nodiscard]] const attention::Unit& unit(std::size_t at) const noexcept {
    return plan_.schedule.units[at / params_.num_kv_heads];
  }
  [[nodiscard]] std::size_t kv_head(std::size_t at) const noexcept { return at % params_.num_kv_heads; }
  [[nodiscard]] kernels::AttendTask task(std::size_t at) const noexcept {
    const attention::Unit& work = unit(at);
    const std::size_t head = kv_head(at);
    kernels::AttendTask task = {};
    task.page_table = work.page_table;
    task.kv_begin = work.kv_begin;
    task.kv_end = work.kv_end;
    task.kv_head = static_cast<std::uint32_t>(head);
    task.num_rows = work.num_rows;
    task.first_row = work.first_row;
    task.first_pos = work.first_pos;
    if (work.first_listed >= 0) task.rows = plan_.schedule.shared_rows.data() + work.first_listed;
    task.mask = plan_.mask;
    task.mask_offset = work.mask_offset + static_cast<std::int64_t>(head * params_.group) * work.mask_head_stride;
    task.mask_row_stride = work.mask_row_stride;
    task.mask_head_stride = work.mask_head_stride;
    task.first_part = work.is_first;
    if (work.num_merges > 0) {
      const std::size_t state = work.state + head * work.head_stride;
      task.partial_out = plan_.partial_out + state * params_.v_head_dim;
      task.partial_lse = plan_.partial_lse + state;
    }
    return task;
  }

  void attend(const attention::Unit& work, const kernels::AttendTask& task, std::byte* scratch) noexcept {
    if (work.sink_end > 0) return attend_with_sinks(work, task, scratch);
    work.kernel->attend(work.is_windowed ? params_ : unwindowed_, task, scratch);
  }

  // The sink tokens and the window, one after the other, each a state; then the state of both.
  void attend_with_sinks(const attention::Unit& work, const kernels::AttendTask& task, std::byte* scratch) noexcept {
    const std::size_t count = static_cast<std::size_t>(task.num_rows) * params_.group, dim = params_.v_head_dim;
    auto* const sink_out = reinterpret_cast<float*>(scratch + plan_.schedule.scratch_bytes);  // [count][dim]
    float* const window_out = sink_out + count * dim;                                         // [count][dim]
    float* const sink_lse = window_out + count * dim;                                         // [count]
    float* const window_lse = sink_lse + count;                                               // [count]
    kernels::AttendTask window = task, sinks = task;
    window.first_part = false;
    window.partial_out = window_out;
    window.partial_lse = window_lse;
    sinks.kv_begin = 0;
    sinks.kv_end = work.sink_end;
    sinks.partial_out = sink_out;
    sinks.partial_lse = sink_lse;
    sinks.next = &window;
    work.kernel->attend(unwindowed_, sinks, scratch);
    work.kernel->attend(params_, window, scratch);
    kernels::merge_rows(sink_out, sink_lse, window_out, window_lse, count, dim);
    if (task.partial_out == nullptr) {
      return kernels::store_rows(params_, write_row_, task.kv_head, task.first_row, task.num_rows, sink_out, sink_lse);
    }
    std::copy_n(sink_out, count * dim, task.partial_out);
    std::copy_n(sink_lse, count, task.partial_lse);
  }

  // Counts a task; whoever computed the last part of some rows merges them.
  void done(std::size_t at) noexcept {
    const attention::Unit& work = unit(at);
    const std::size_t head = kv_head(at), first = static_cast<std::size_t>(work.first_merge);
    for (std::size_t m = first; m < first + static_cast<std::size_t>(work.num_merges); ++m) {
      std::atomic<std::int32_t>& left = plan_.units_left[m * params_.num_kv_heads + head];
      if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) merge(plan_.schedule.merges[m], head);
    }
    done_.fetch_add(1, std::memory_order_release);
  }

  // Merges the parts of some rows in the order of the keys, into the first part and then out.
  void merge(const attention::Merge& merge, std::size_t head) noexcept {
    const std::size_t count = static_cast<std::size_t>(merge.num_rows) * params_.group, dim = params_.v_head_dim;
    const auto all = std::span(plan_.schedule.states).subspan(merge.first_states, merge.num_states);
    const std::size_t first = all[0].index(head, 0);
    float* const out = plan_.partial_out + first * dim;
    float* const lse = plan_.partial_lse + first;
    for (const attention::States& states : all) {
      for (std::size_t part = 0; part < states.num_parts; ++part) {
        const std::size_t at = states.index(head, part);
        if (at == first) continue;
        kernels::merge_rows(out, lse, plan_.partial_out + at * dim, plan_.partial_lse + at, count, dim);
      }
    }
    kernels::store_rows(params_, write_row_, static_cast<std::uint32_t>(head), merge.first_row, merge.num_rows, out,
                        lse);
  }

  const Planned& plan_;
  const kernels::AttendParams& params_;
  kernels::AttendParams unwindowed_;  // for keys that the window does not hide
  const kernels::WriteRowFn write_row_;
  const std::size_t num_tasks_, num_lanes_;
  alignas(kCacheLineBytes) std::atomic<std::size_t> next_{0};
  alignas(kCacheLineBytes) std::atomic<std::size_t> done_{0};
};

Result<void> Planned::build(const AttentionConfig& layer, const AttentionBatch& batch) {
  auto read = attention::read_layer(layer);
  if (!read.has_value()) return read.error();
  if (auto checked = attention::check_batch(layer, batch); !checked) return checked;
  const auto found = cpu::choose_target(layer.target);
  if (!found) return found.error();
  target = *found;
  config = layer;
  config.target = {};
  config.variant.sinks = config.variant.alibi_slopes = {};
  params = *read;
  params.mask_kind = batch.mask.kind;
  sinks.assign(layer.variant.sinks.begin(), layer.variant.sinks.end());
  slopes.assign(layer.variant.alibi_slopes.begin(), layer.variant.alibi_slopes.end());
  params.sinks = sinks.empty() ? nullptr : sinks.data();
  params.alibi_slopes = slopes.empty() ? nullptr : slopes.data();
  mask = batch.mask.bytes.data();
  qo_indptr.assign(batch.qo_indptr.begin(), batch.qo_indptr.end());
  copy_pages(batch);
  attention::make_schedule(schedule, planned(batch));
  return {};
}

void Planned::count_ids(const std::int32_t* ids, std::int64_t count) noexcept {
  std::int32_t largest = -1;
  for (std::int64_t i = 0; i < count; ++i) largest = std::max(largest, ids[i]);
  page_id_limit = std::max(page_id_limit, std::int64_t{largest} + 1);
}

void Planned::copy_pages(const AttentionBatch& batch) {
  const std::size_t count = attention::num_sequences(batch);
  std::vector<attention::PageTable> new_tables(count);
  std::size_t num_ids = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t pages = attention::read_sequence(config, batch, i).num_pages;
    new_tables[i] = {num_ids, pages, pages + kSparePages};
    num_ids += static_cast<std::size_t>(pages + kSparePages);
  }
  std::vector<std::int32_t> new_ids(num_ids);
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t* const from = attention::read_sequence(config, batch, i).pages;
    std::copy_n(from, new_tables[i].count, new_ids.data() + new_tables[i].first);
    count_ids(from, new_tables[i].count);
  }
  tables.swap(new_tables);
  page_ids.swap(new_ids);
}

// Behind the ids that the plan counts, where nothing reads them yet.
void Planned::write_new_pages(const AttentionBatch& batch) noexcept {
  for (std::size_t i = 0; i < tables.size(); ++i) {
    const attention::SequenceView sequence = attention::read_sequence(config, batch, i);
    const std::int64_t known = tables[i].count;
    std::copy_n(sequence.pages + known, sequence.num_pages - known, page_ids.data() + tables[i].first + known);
  }
}

void Planned::count_new_pages(const AttentionBatch& batch) noexcept {
  for (std::size_t i = 0; i < tables.size(); ++i) {
    const std::int64_t known = tables[i].count;
    tables[i].count = attention::read_sequence(config, batch, i).num_pages;
    count_ids(page_ids.data() + tables[i].first + known, tables[i].count - known);
  }
}

Result<void> Planned::extend(const AttentionBatch& batch) {
  if (auto checked = attention::check_batch(config, batch); !checked) return checked;
  if (!std::equal(qo_indptr.begin(), qo_indptr.end(), batch.qo_indptr.begin(), batch.qo_indptr.end()) ||
      batch.mask.kind != params.mask_kind) {
    return Error{Errc::kInvalidArgument, "extend needs the sequences, the rows and the kind of mask of the plan"};
  }
  bool fits = true;
  for (std::size_t i = 0; i < tables.size(); ++i) {
    const std::int64_t pages = attention::read_sequence(config, batch, i).num_pages;
    if (pages < tables[i].count) return Error{Errc::kInvalidArgument, "a sequence has lost pages since it was planned"};
    fits = fits && pages <= tables[i].capacity;
  }
  if (!fits) return rebuild(batch);
  write_new_pages(batch);  // counted when nothing can fail any more
  attention::make_schedule(spare, planned(batch));
  std::swap(schedule, spare);
  const bool grows = owned_workspace != nullptr && workspace_bytes() > workspace.size();
  if (auto placed = place(grows ? std::span<std::byte>() : workspace); !placed) {
    std::swap(schedule, spare);
    return placed;
  }
  count_new_pages(batch);
  mask = batch.mask.bytes.data();
  return {};
}

Result<void> Planned::rebuild(const AttentionBatch& batch) {
  AttentionConfig layer = config;
  layer.variant.sinks = sinks;
  layer.variant.alibi_slopes = slopes;
  layer.target = target->name;
  Planned fresh;
  if (auto built = fresh.build(layer, batch); !built) return built;
  if (auto placed = fresh.place(owned_workspace != nullptr ? std::span<std::byte>() : workspace); !placed)
    return placed;
  *this = std::move(fresh);
  return {};
}

Result<void> Planned::place(std::span<std::byte> memory) noexcept {
  const std::size_t needed = workspace_bytes(), merges = schedule.merges.size() * params.num_kv_heads;
  try {
    auto counters = std::make_unique<std::atomic<std::int32_t>[]>(merges);
    auto lanes = std::make_unique<Claim[]>(std::max<std::size_t>(num_lanes(), 1));
    if (memory.data() == nullptr && needed != 0) {
      owned_workspace.reset(static_cast<std::byte*>(::operator new[](needed, std::align_val_t{kCacheLineBytes})));
      memory = {owned_workspace.get(), needed};
    }
    if (memory.size() < needed) return Error{Errc::kInvalidArgument, "the workspace is smaller than workspace_bytes"};
    if (reinterpret_cast<std::uintptr_t>(memory.data()) % kCacheLineBytes != 0) {
      return Error{Errc::kInvalidArgument, "the workspace must be aligned to 64 bytes"};
    }
    units_left = std::move(counters);
    claims = std::move(lanes);
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
  workspace = memory;
  partial_out = reinterpret_cast<float*>(memory.data());
  partial_lse = reinterpret_cast<float*>(memory.data() + partial_out_bytes());
  scratch = memory.data() + partial_out_bytes() + partial_lse_bytes();
  return {};
}

double Planned::seconds() const noexcept {
  const double row_bytes = static_cast<double>((params.head_dim + params.v_head_dim) * size_of(params.kv_dtype));
  const double bytes = static_cast<double>(schedule.kv_keys) * params.num_kv_heads * row_bytes;
  const double flops = 2.0 * schedule.pairs * params.num_q_heads * (params.head_dim + params.v_head_dim);
  return bytes / kBytesPerSecond + flops / kFlopsPerSecond;
}

}  // namespace

struct PAGEDKV_LOCAL AttentionPlan::Impl : Planned {};

Result<std::size_t> AttentionPlan::workspace_bytes(const AttentionConfig& config,
                                                   const AttentionBatch& batch) noexcept {
  try {
    Impl impl;
    if (auto built = impl.build(config, batch); !built) return built.error();
    return impl.workspace_bytes();
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
}

Result<AttentionPlan> AttentionPlan::create(const AttentionConfig& config, const AttentionBatch& batch,
                                            std::span<std::byte> workspace) noexcept {
  try {
    auto impl = std::make_unique<Impl>();
    if (auto built = impl->build(config, batch); !built) return built.error();
    if (auto placed = impl->place(workspace); !placed) return placed.error();
    return AttentionPlan(std::move(impl));
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
}

Result<void> AttentionPlan::extend(const AttentionBatch& batch) noexcept {
  if (impl_ == nullptr) return Error{Errc::kClosed, "the plan was moved from"};
  try {
    return impl_->extend(batch);
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
}

Result<void> AttentionPlan::run(const KvView& pages, ConstTensor q, Tensor out, std::span<float> lse,
                                std::span<const float> sinks) const noexcept {
  if (impl_ == nullptr) return Error{Errc::kClosed, "the plan was moved from"};
  const std::size_t heads = impl_->num_rows() * impl_->params.num_q_heads;
  if (!is_valid(q.dtype) || q.num_elements != heads * impl_->params.head_dim || !is_valid(out.dtype) ||
      out.num_elements != heads * impl_->params.v_head_dim || (!lse.empty() && lse.size() != heads)) {
    return Error{Errc::kInvalidArgument, "q, out or lse does not have the size of the batch"};
  }
  if (heads != 0 && (q.data == nullptr || out.data == nullptr)) {
    return Error{Errc::kInvalidArgument, "q and out must not be null"};
  }
  if (auto checked = attention::check_view(impl_->params, pages, impl_->page_id_limit); !checked) return checked;
  if (auto checked = attention::check_sinks(sinks, impl_->params.num_q_heads); !checked) return checked;
  kernels::AttendParams params = impl_->params;
  if (!sinks.empty()) params.sinks = sinks.data();
  params.pages = pages;
  params.q = q.data;
  params.q_dtype = q.dtype;
  params.out = out.data;
  params.out_dtype = out.dtype;
  params.lse = lse.empty() ? nullptr : lse.data();

  AttentionRun run(*impl_, params);
  try {
    if (impl_->num_lanes() <= 1 || impl_->seconds() < kInlineSeconds) {
      run.lane(0);
    } else {
      attention::parallel_indices(impl_->num_lanes(), [&run](std::size_t lane) noexcept { run.lane(lane); });
    }
  } catch (...) {
    return Error{Errc::kOutOfMemory, "the scheduler had no memory for its tasks"};
  }
  if (!run.is_complete()) return Error{Errc::kCancelled, "the task group was cancelled; outputs are unspecified"};
  return {};
}

std::size_t AttentionPlan::num_rows() const noexcept { return impl_ != nullptr ? impl_->num_rows() : 0; }

const char* AttentionPlan::target() const noexcept { return impl_ != nullptr ? impl_->target->name : ""; }

std::uint64_t AttentionPlan::kv_bytes() const noexcept {
  if (impl_ == nullptr) return 0;
  const kernels::AttendParams& params = impl_->params;
  return impl_->schedule.kv_keys * params.num_kv_heads * (params.head_dim + params.v_head_dim) *
         size_of(params.kv_dtype);
}

std::uint64_t AttentionPlan::kv_bytes(const KvView& pages) const noexcept {
  if (impl_ == nullptr) return 0;
  kernels::AttendParams params = impl_->params;
  params.pages = pages;
  if (!kernels::values_lie_in_keys(params)) return kv_bytes();
  return impl_->schedule.kv_keys * params.num_kv_heads * params.head_dim * size_of(params.kv_dtype);
}

double AttentionPlan::flops() const noexcept {
  if (impl_ == nullptr) return 0;
  const kernels::AttendParams& params = impl_->params;
  return 2.0 * impl_->schedule.pairs * params.num_q_heads * (params.head_dim + params.v_head_dim);
}

AttentionPlan::AttentionPlan(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
AttentionPlan::AttentionPlan(AttentionPlan&&) noexcept = default;
AttentionPlan& AttentionPlan::operator=(AttentionPlan&&) noexcept = default;
AttentionPlan::~AttentionPlan() = default;

}  // namespace pagedkv
