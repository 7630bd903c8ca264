// AttentionPlan: checks, schedules and runs one ragged batch.
#include <tbb/parallel_for.h>
#include <tbb/task_group.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "attention/batch.h"
#include "attention/schedule.h"
#include "cpu/targets.h"
#include "kernels/merge.h"
#include "pagedkv/attention.h"
#include "pagedkv/cpu.h"

namespace pagedkv {
namespace {

constexpr std::size_t kAlignment = 64;
// A call that computes for less than this is over before another thread has woken up.
constexpr double kInlineSeconds = 20e-6, kBytesPerSecond = 10e9, kFlopsPerSecond = 50e9;

struct FreeAligned {
  void operator()(std::byte* memory) const noexcept { ::operator delete[](memory, std::align_val_t{kAlignment}); }
};
using AlignedBytes = std::unique_ptr<std::byte[], FreeAligned>;

constexpr std::size_t round_up(std::size_t bytes) noexcept {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

constexpr Error kNoMemory = {Errc::kOutOfMemory, "no memory for the bookkeeping of a plan"};

/// A schedule, its copy of the page tables, and where the workspace's parts are.
struct Planned {
  kernels::AttendParams params = {};  // q, out, lse and pages are null here
  std::vector<float> sinks, slopes;
  const TargetInfo* target = nullptr;
  std::vector<std::int32_t> page_ids;
  std::int64_t page_id_limit = 0;  // one more than the largest id
  std::size_t num_rows = 0;
  const std::byte* mask = nullptr;
  attention::Schedule schedule;
  std::size_t num_lanes = 0;

  AlignedBytes owned_workspace;
  float* partial_out = nullptr;                             // [num_states][v_head_dim]
  float* partial_lse = nullptr;                             // [num_states]
  std::byte* scratch = nullptr;                             // [num_lanes][scratch_bytes]
  std::unique_ptr<std::atomic<std::int32_t>[]> parts_left;  // [merges][num_kv_heads]

  Result<void> build(const AttentionConfig& config, const AttentionBatch& batch);
  [[nodiscard]] std::size_t partial_out_bytes() const noexcept {
    return round_up(schedule.num_states * params.v_head_dim * sizeof(float));
  }
  [[nodiscard]] std::size_t partial_lse_bytes() const noexcept { return round_up(schedule.num_states * sizeof(float)); }
  [[nodiscard]] std::size_t workspace_bytes() const noexcept {
    return partial_out_bytes() + partial_lse_bytes() + num_lanes * schedule.scratch_bytes;
  }
  Result<void> place(std::span<std::byte> workspace);
  [[nodiscard]] std::size_t num_tasks() const noexcept { return schedule.units.size() * params.num_kv_heads; }
  [[nodiscard]] double seconds() const noexcept;
};

/// One run: hands (unit, kv head) tasks to lanes, a lane being a thread at work with scratch of its own.
class AttentionRun {
 public:
  AttentionRun(const Planned& plan, const kernels::AttendParams& params) noexcept
      : plan_(plan), params_(params), num_tasks_(plan.num_tasks()) {
    const std::size_t heads = params.num_kv_heads;
    for (std::size_t m = 0; m < plan.schedule.merges.size(); ++m) {
      for (std::size_t h = 0; h < heads; ++h) {
        plan.parts_left[m * heads + h].store(plan.schedule.merges[m].num_parts, std::memory_order_relaxed);
      }
    }
  }

  /// Computes tasks until none is left. A lane claims a task before it begins the one at hand, whose kernel then
  /// prefetches the first keys of the claimed one.
  void lane(std::size_t index) noexcept {
    std::byte* const scratch = plan_.scratch + index * plan_.schedule.scratch_bytes;
    kernels::AttendTask tasks[2];
    std::size_t at = claim();
    if (at < num_tasks_) tasks[0] = task(at);
    for (std::size_t i = 0; at < num_tasks_; i ^= 1) {
      if (tbb::is_current_task_group_canceling()) return;
      const std::size_t next = claim();
      if (next < num_tasks_) {
        tasks[i ^ 1] = task(next);
        tasks[i].next = &tasks[i ^ 1];
      }
      unit(at).kernel->attend(params_, tasks[i], scratch);
      done(at);
      at = next;
    }
  }

  [[nodiscard]] bool is_complete() const noexcept { return done_.load(std::memory_order_acquire) == num_tasks_; }

 private:
  std::size_t claim() noexcept { return next_.fetch_add(1, std::memory_order_relaxed); }
  [[nodiscard]] const attention::Unit& unit(std::size_t at) const noexcept {
    return plan_.schedule.units[at / params_.num_kv_heads];
  }
  [[nodiscard]] std::size_t kv_head(std::size_t at) const noexcept { return at % params_.num_kv_heads; }
  [[nodiscard]] std::size_t part_rows(const attention::Merge& merge) const noexcept {
    return static_cast<std::size_t>(merge.num_rows) * params_.group;
  }
  // First state of a merge's kv head.
  [[nodiscard]] std::size_t first_state(const attention::Merge& merge, std::size_t head) const noexcept {
    return merge.first_state + head * static_cast<std::size_t>(merge.num_parts) * part_rows(merge);
  }

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
    task.mask = plan_.mask;
    task.mask_offset = work.mask_offset + static_cast<std::int64_t>(head * params_.group) * work.mask_head_stride;
    task.mask_row_stride = work.mask_row_stride;
    task.mask_head_stride = work.mask_head_stride;
    task.first_part = work.part == 0;
    if (work.merge >= 0) {
      const attention::Merge& merge = plan_.schedule.merges[static_cast<std::size_t>(work.merge)];
      const std::size_t state = first_state(merge, head) + static_cast<std::size_t>(work.part) * part_rows(merge);
      task.partial_out = plan_.partial_out + state * params_.v_head_dim;
      task.partial_lse = plan_.partial_lse + state;
    }
    return task;
  }

  // Counts a task; whoever computed the last part of some rows merges them, in the order of the keys.
  void done(std::size_t at) noexcept {
    const attention::Unit& work = unit(at);
    if (work.merge >= 0) {
      const std::size_t merge_index = static_cast<std::size_t>(work.merge), head = kv_head(at);
      std::atomic<std::int32_t>& left = plan_.parts_left[merge_index * params_.num_kv_heads + head];
      if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        const attention::Merge& merge = plan_.schedule.merges[merge_index];
        const std::size_t state = first_state(merge, head);
        kernels::merge_parts(params_, static_cast<std::uint32_t>(head), merge.first_row, merge.num_rows,
                             merge.num_parts, part_rows(merge), plan_.partial_out + state * params_.v_head_dim,
                             plan_.partial_lse + state);
      }
    }
    done_.fetch_add(1, std::memory_order_release);
  }

  const Planned& plan_;
  const kernels::AttendParams& params_;
  const std::size_t num_tasks_;
  alignas(kAlignment) std::atomic<std::size_t> next_{0};
  alignas(kAlignment) std::atomic<std::size_t> done_{0};
};

Result<void> Planned::build(const AttentionConfig& config, const AttentionBatch& batch) {
  auto layer = attention::read_layer(config);
  if (!layer.has_value()) return layer.error();
  if (auto checked = attention::check_batch(config, batch); !checked) return checked;
  auto found = config.target.empty() ? active_target() : find_target(config.target);
  if (!found.has_value()) return Error{Errc::kUnsupported, found.error().what};
  target = *found;
  params = *layer;
  params.mask_kind = batch.mask.kind;
  sinks.assign(config.variant.sinks.begin(), config.variant.sinks.end());
  slopes.assign(config.variant.alibi_slopes.begin(), config.variant.alibi_slopes.end());
  params.sinks = sinks.empty() ? nullptr : sinks.data();
  params.alibi_slopes = slopes.empty() ? nullptr : slopes.data();
  mask = batch.mask.bytes.data();
  num_rows = static_cast<std::size_t>(batch.qo_indptr.back());

  const std::size_t count = attention::num_sequences(batch);
  std::size_t num_ids = 0;
  for (std::size_t i = 0; i < count; ++i) {
    num_ids += static_cast<std::size_t>(attention::read_sequence(config, batch, i).num_pages);
  }
  page_ids.reserve(num_ids);
  const cpu::Target number = cpu::target_of(*target);
  for (std::size_t i = 0; i < count; ++i) {
    const attention::SequenceView sequence = attention::read_sequence(config, batch, i);
    const std::int32_t* const table = page_ids.data() + page_ids.size();
    page_ids.insert(page_ids.end(), sequence.pages, sequence.pages + sequence.num_pages);
    attention::add_sequence(schedule, params, number, sequence, table);
  }
  std::int32_t largest = -1;
  for (const std::int32_t id : page_ids) largest = std::max(largest, id);
  page_id_limit = std::int64_t{largest} + 1;
  attention::finish(schedule, params);
  num_lanes = std::min(num_tasks(), static_cast<std::size_t>(std::max(cpu_info().num_cpus, 4)));
  return {};
}

Result<void> Planned::place(std::span<std::byte> workspace) {
  const std::size_t needed = workspace_bytes();
  if (workspace.data() == nullptr && needed != 0) {
    owned_workspace.reset(static_cast<std::byte*>(::operator new[](needed, std::align_val_t{kAlignment})));
    workspace = {owned_workspace.get(), needed};
  }
  if (workspace.size() < needed) return Error{Errc::kInvalidArgument, "the workspace is smaller than workspace_bytes"};
  if (reinterpret_cast<std::uintptr_t>(workspace.data()) % kAlignment != 0) {
    return Error{Errc::kInvalidArgument, "the workspace must be aligned to 64 bytes"};
  }
  partial_out = reinterpret_cast<float*>(workspace.data());
  partial_lse = reinterpret_cast<float*>(workspace.data() + partial_out_bytes());
  scratch = workspace.data() + partial_out_bytes() + partial_lse_bytes();
  parts_left = std::make_unique<std::atomic<std::int32_t>[]>(schedule.merges.size() * params.num_kv_heads);
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

Result<void> AttentionPlan::run(const KvView& pages, ConstTensor q, Tensor out, std::span<float> lse) const noexcept {
  if (impl_ == nullptr) return Error{Errc::kClosed, "the plan was moved from"};
  const std::size_t heads = impl_->num_rows * impl_->params.num_q_heads;
  if (!is_valid(q.dtype) || q.num_elements != heads * impl_->params.head_dim || !is_valid(out.dtype) ||
      out.num_elements != heads * impl_->params.v_head_dim || (!lse.empty() && lse.size() != heads)) {
    return Error{Errc::kInvalidArgument, "q, out or lse does not have the size of the batch"};
  }
  if (heads != 0 && (q.data == nullptr || out.data == nullptr)) {
    return Error{Errc::kInvalidArgument, "q and out must not be null"};
  }
  if (auto checked = attention::check_view(impl_->params, pages, impl_->page_id_limit); !checked) return checked;
  kernels::AttendParams params = impl_->params;
  params.pages = pages;
  params.q = q.data;
  params.q_dtype = q.dtype;
  params.out = out.data;
  params.out_dtype = out.dtype;
  params.lse = lse.empty() ? nullptr : lse.data();

  AttentionRun run(*impl_, params);
  try {
    if (impl_->num_lanes <= 1 || impl_->seconds() < kInlineSeconds) {
      run.lane(0);
    } else {
      tbb::parallel_for(
          std::size_t{0}, impl_->num_lanes, [&run](std::size_t lane) noexcept { run.lane(lane); },
          tbb::simple_partitioner());
    }
  } catch (...) {
    return Error{Errc::kOutOfMemory, "the scheduler had no memory for its tasks"};
  }
  if (!run.is_complete()) return Error{Errc::kCancelled, "the task group was cancelled; outputs are unspecified"};
  return {};
}

std::size_t AttentionPlan::num_rows() const noexcept { return impl_ != nullptr ? impl_->num_rows : 0; }

const char* AttentionPlan::target() const noexcept { return impl_ != nullptr ? impl_->target->name : ""; }

std::uint64_t AttentionPlan::kv_bytes() const noexcept {
  if (impl_ == nullptr) return 0;
  const kernels::AttendParams& params = impl_->params;
  return impl_->schedule.kv_keys * params.num_kv_heads * (params.head_dim + params.v_head_dim) *
         size_of(params.kv_dtype);
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
