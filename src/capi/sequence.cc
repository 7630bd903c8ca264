// The C functions of Sequence and Step.
#include <algorithm>

#include "capi/convert.h"
#include "capi/handles.h"

using namespace pagedkv;
using namespace pagedkv::capi;

namespace {

/// Copies as much as there is room for and says how much there is.
Result<void> copy_out(std::span<const std::int32_t> from, int32_t* to, size_t capacity, size_t* count) noexcept {
  if (count == nullptr) return kNullArgument;
  const Result<std::span<std::int32_t>> room = span_of(to, capacity);
  if (!room) return room.error();
  std::copy_n(from.begin(), std::min(from.size(), capacity), room->begin());
  *count = from.size();
  return {};
}

}  // namespace

// Sequences -----------------------------------------------------------------------------------------------------------

pagedkv_status pagedkv_sequence_close(pagedkv_sequence sequence) {
  // In a step it is busy, and its handle stays.
  return close_after<SequenceTable>(sequence, [](Sequence& object) { return object.close(); });
}

pagedkv_status pagedkv_sequence_append(pagedkv_sequence sequence, uint32_t num_tokens) {
  return with<SequenceTable>(sequence, [&](Sequence& object) { return object.append(num_tokens); });
}

pagedkv_status pagedkv_sequence_truncate(pagedkv_sequence sequence, uint64_t num_tokens) {
  return with<SequenceTable>(sequence, [&](Sequence& object) { return object.truncate(num_tokens); });
}

pagedkv_status pagedkv_sequence_slide(pagedkv_sequence sequence, uint64_t window, uint64_t sink_tokens, size_t group,
                                      uint64_t* released_pages) {
  return with<SequenceTable>(sequence, [&](Sequence& object) -> Result<void> {
    const Result<std::uint64_t> released = object.slide(window, sink_tokens, group);
    if (!released) return released.error();
    if (released_pages != nullptr) *released_pages = *released;
    return {};
  });
}

pagedkv_status pagedkv_sequence_fork(pagedkv_sequence sequence, pagedkv_sequence* branch) {
  if (branch == nullptr) return report(kNullArgument);
  return with<SequenceTable>(
      sequence, [&](Sequence& object) { return give<SequenceTable>(branch, [&] { return object.fork(); }); });
}

pagedkv_status pagedkv_sequence_num_tokens(pagedkv_sequence sequence, uint64_t* num_tokens) {
  return ask<SequenceTable>(sequence, num_tokens, [](Sequence& object) { return object.num_tokens(); });
}
pagedkv_status pagedkv_sequence_cached_tokens(pagedkv_sequence sequence, uint64_t* num_tokens) {
  return ask<SequenceTable>(sequence, num_tokens, [](Sequence& object) { return object.cached_tokens(); });
}
pagedkv_status pagedkv_sequence_num_groups(pagedkv_sequence sequence, size_t* num_groups) {
  return ask<SequenceTable>(sequence, num_groups, [](Sequence& object) { return object.num_groups(); });
}
pagedkv_status pagedkv_sequence_page_size(pagedkv_sequence sequence, uint32_t* page_size) {
  return ask<SequenceTable>(sequence, page_size, [](Sequence& object) { return object.page_size(); });
}
pagedkv_status pagedkv_sequence_pages_needed(pagedkv_sequence sequence, uint32_t num_tokens, uint64_t* pages) {
  return ask<SequenceTable>(sequence, pages, [&](Sequence& object) { return object.pages_needed(num_tokens); });
}

pagedkv_status pagedkv_sequence_pages(pagedkv_sequence sequence, size_t group, int32_t* pages, size_t capacity,
                                      size_t* num_pages) {
  return with<SequenceTable>(sequence, [&](Sequence& object) -> Result<void> {
    if (group >= object.num_groups()) return Error{Errc::kInvalidArgument, "there is no such layer group"};
    if (num_pages == nullptr) return kNullArgument;
    const Result<std::span<std::int32_t>> room = span_of(pages, capacity);
    if (!room) return room.error();
    const std::span<const PageId> held = object.pages(group);
    std::transform(held.begin(), held.begin() + static_cast<std::ptrdiff_t>(std::min(held.size(), capacity)),
                   room->begin(), [](PageId page) { return to_index(page); });
    *num_pages = held.size();
    return {};
  });
}

pagedkv_status pagedkv_sequence_tokens(pagedkv_sequence sequence, int32_t* tokens, size_t capacity,
                                       size_t* num_tokens) {
  return with<SequenceTable>(sequence,
                             [&](Sequence& object) { return copy_out(object.tokens(), tokens, capacity, num_tokens); });
}

// Steps ---------------------------------------------------------------------------------------------------------------

pagedkv_status pagedkv_step_write(pagedkv_step step, uint32_t layer, pagedkv_const_tensor k, pagedkv_const_tensor v) {
  return with<StepTable>(step, [&](HeldStep& object) -> Result<void> {
    Checks checks;
    const ConstTensor keys = checks.tensor(k), values = checks.tensor(v);
    return checks.failed() ? checks.error() : object.step.write(layer, keys, values);
  });
}

pagedkv_status pagedkv_step_attend(pagedkv_step step, uint32_t layer, pagedkv_const_tensor q, pagedkv_tensor out,
                                   float* lse, size_t num_lse) {
  return with<StepTable>(step, [&](HeldStep& object) -> Result<void> {
    Checks checks;
    const ConstTensor queries = checks.tensor(q);
    const Tensor output = checks.tensor(out);
    const std::span<float> sums = checks.span(lse, num_lse);
    return checks.failed() ? checks.error() : object.step.attend(layer, queries, output, sums);
  });
}

pagedkv_status pagedkv_step_commit(pagedkv_step step) {
  return with<StepTable>(step, [](HeldStep& object) { return object.end([&] { return object.step.commit(); }); });
}

pagedkv_status pagedkv_step_commit_partial(pagedkv_step step, const uint32_t* accepted, size_t num_items) {
  return with<StepTable>(step, [&](HeldStep& object) -> Result<void> {
    const Result<std::span<const std::uint32_t>> counts = span_of(accepted, num_items);
    return counts ? object.end([&] { return object.step.commit(*counts); }) : counts.error();
  });
}

pagedkv_status pagedkv_step_rollback(pagedkv_step step) {
  return with<StepTable>(step, [](HeldStep& object) { return object.roll_back(); });
}

pagedkv_status pagedkv_step_num_rows(pagedkv_step step, size_t* num_rows) {
  return ask<StepTable>(step, num_rows, [](HeldStep& object) { return object.step.num_rows(); });
}
pagedkv_status pagedkv_step_num_items(pagedkv_step step, size_t* num_items) {
  return ask<StepTable>(step, num_items, [](HeldStep& object) { return object.step.num_items(); });
}
pagedkv_status pagedkv_step_close(pagedkv_step step) {
  // Its sequences may be busy, and its handle stays.
  return close_after<StepTable>(step, [](HeldStep& object) { return object.roll_back(); });
}
