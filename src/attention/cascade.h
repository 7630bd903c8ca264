// Keys that several sequences of a batch read once: the batch is sorted by its page tables, which makes a trie of their
// common leading pages, and walked in that order.
//
// Layer: attention.
#pragma once

#include "attention/schedule.h"

namespace pagedkv::attention {

/// The key, begin of a part, from which on no window hides keys from the rows of a sequence. What lies before is shared
/// by nobody who does not see all of it.
std::int64_t seen_from(const kernels::AttendParams& params, const SequenceView& view) noexcept;

/// Puts the sequences of a batch in schedule.order, by their page ids if cascade is on, and finds what neighbours have
/// in common. Pages are compared, so a page table that repeats another's ids shares them. May throw std::bad_alloc.
///
/// Cost: O(B), or O(B log B) comparisons of the pages of whole parts
void find_order(Schedule& schedule, const PlannedBatch& batch);

/// Adds the units of what the run of sequences that begins at order[first] reads once, then of the runs within it that
/// begin there too and have more in common. The sequences must follow, and close_shared where a run ends. May throw
/// std::bad_alloc.
///
/// Cost: O(sequences of the run) a level, and beside windows as much for every part in which some window begins
void open_shared(Schedule& schedule, const PlannedBatch& batch, std::size_t first);

/// Ends the runs that do not hold order[next]: lets their units know the merges of the sequences that were added since.
void close_shared(Schedule& schedule, std::size_t next) noexcept;

}  // namespace pagedkv::attention
