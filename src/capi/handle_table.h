// Handles: numbers that name an object and its generation, so that a stale or foreign one is refused and never
// followed.
//
//   handle  kind (4 bits) | generation (28) | slot (32)
//
// A slot's word counts who is in a call on its object. Closing marks the object; whoever leaves it last destroys it and
// moves the slot on to its next generation, which no old handle names.
//
// Layer: capi.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "pagedkv/result.h"

namespace pagedkv::capi {

enum class Kind : std::uint8_t {
  kCache = 1,
  kSequence = 2,
  kStep = 3,
  kPool = 4,
  kStore = 5,
  kPlan = 6,
  kDense = 7,
  kInterleaved = 8,
};

/// Whether several threads may be in calls on one object.
enum class Access : std::uint8_t { kShared, kExclusive };

template <class T, Kind kKind, Access kAccess>
class HandleTable {
  struct Slot {
    std::atomic<std::uint64_t> word{0};  // generation << 32 | kClosing | users
    std::optional<T> object;
  };

 public:
  /// An object during a call.
  class Use {
   public:
    explicit Use(HandleTable& table, std::uint32_t index, Slot& slot) noexcept
        : table_(&table), slot_(&slot), index_(index) {}
    Use(Use&& other) noexcept
        : table_(other.table_), slot_(std::exchange(other.slot_, nullptr)), index_(other.index_) {}
    Use& operator=(Use&&) = delete;
    ~Use() {
      if (slot_ != nullptr) table_->leave(index_, *slot_);
    }
    /// Makes the handle invalid at once; the object goes when this call ends, the only one on it.
    void close() noexcept
      requires(kAccess == Access::kExclusive)  // of several calls at once each would be told that it closed the handle
    {
      slot_->word.fetch_or(kClosing, std::memory_order_acq_rel);
    }
    T* operator->() const noexcept { return &*slot_->object; }
    T& operator*() const noexcept { return *slot_->object; }

   private:
    HandleTable* table_;
    Slot* slot_;
    std::uint32_t index_;
  };

  /// A slot for an object that is yet to be made; free again unless it was filled.
  class Place {
   public:
    explicit Place(HandleTable& table, std::uint32_t index) noexcept : table_(&table), index_(index) {}
    Place(Place&& other) noexcept : table_(std::exchange(other.table_, nullptr)), index_(other.index_) {}
    Place& operator=(Place&&) = delete;
    ~Place() {
      if (table_ != nullptr) table_->free(index_);
    }
    /// Returns the handle of the object.
    std::uint64_t fill(T&& object) noexcept { return std::exchange(table_, nullptr)->fill(index_, std::move(object)); }

   private:
    HandleTable* table_;
    std::uint32_t index_;
  };

  /// Errors: kOutOfMemory
  Result<Place> reserve() noexcept try {
    const std::scoped_lock guard(mutex_);
    if (free_.empty()) add_chunk();
    const std::uint32_t index = free_.back();
    free_.pop_back();
    return Place(*this, index);
  } catch (const std::bad_alloc&) {
    return Error{Errc::kOutOfMemory, "no memory for a handle"};
  }

  /// Enters a call. Errors: kClosed, kInvalidArgument (a handle of another kind), kBusy (exclusive, in another call)
  Result<Use> use(std::uint64_t handle) noexcept {
    Result<Slot*> slot = enter(handle, 0);
    if (!slot) return slot.error();
    return Use(*this, index_of(handle), **slot);
  }

  /// Makes a handle invalid at once; the object goes when the last call on it ends. Errors: as `use`
  Result<void> close(std::uint64_t handle) noexcept {
    Result<Slot*> slot = enter(handle, kClosing);
    if (!slot) return slot.error();
    leave(index_of(handle), **slot);
    return {};
  }

 private:
  static constexpr std::uint64_t kClosing = 1U << 31;
  static constexpr std::uint64_t kUsers = kClosing - 1;
  static constexpr std::uint64_t kMaxGeneration = (1U << 28) - 1;
  static constexpr std::uint64_t kRetired = std::uint64_t{1} << 31;  // of a generation: no handle has it
  static constexpr std::size_t kFirstChunk = 64, kMaxChunks = 26;

  std::uint64_t fill(std::uint32_t index, T&& object) noexcept {
    Slot& slot = *find(index);
    const std::uint64_t generation = (slot.word.load(std::memory_order_relaxed) >> 32) & ~kRetired;
    slot.object.emplace(std::move(object));
    slot.word.store(generation << 32, std::memory_order_release);
    return std::uint64_t{static_cast<std::uint8_t>(kKind)} << 60 | generation << 32 | index;
  }

  void free(std::uint32_t index) noexcept {
    const std::scoped_lock guard(mutex_);
    free_.push_back(index);  // there is room: it came from there
  }

  static std::uint32_t index_of(std::uint64_t handle) noexcept { return static_cast<std::uint32_t>(handle); }

  Result<Slot*> enter(std::uint64_t handle, std::uint64_t mark) noexcept {
    constexpr Error kClosedError{Errc::kClosed, "the handle was closed or never given out"};
    if (handle == 0) return Error{Errc::kClosed, "the handle is null"};
    if (handle >> 60 != static_cast<std::uint8_t>(kKind)) {
      return Error{Errc::kInvalidArgument, "the handle names an object of another kind"};
    }
    Slot* const slot = find(index_of(handle));
    if (slot == nullptr) return kClosedError;
    const std::uint64_t generation = handle >> 32 & kMaxGeneration;
    std::uint64_t word = slot->word.load(std::memory_order_acquire);
    do {
      if (word >> 32 != generation || (word & kClosing) != 0) return kClosedError;
      if (kAccess == Access::kExclusive && (word & kUsers) != 0) {
        return Error{Errc::kBusy, "another thread is in a call on the object"};
      }
    } while (!slot->word.compare_exchange_weak(word, (word | mark) + 1, std::memory_order_acq_rel));
    return slot;
  }

  void leave(std::uint32_t index, Slot& slot) noexcept {
    const std::uint64_t before = slot.word.fetch_sub(1, std::memory_order_acq_rel);
    if ((before & kClosing) == 0 || (before & kUsers) != 1) return;
    slot.object.reset();
    const std::uint64_t generation = (before >> 32) + 1;
    if (generation > kMaxGeneration) return;  // the slot retires: its handles would repeat
    slot.word.store((generation | kRetired) << 32, std::memory_order_release);  // until it is given out
    free(index);
  }

  // Chunks of doubling size, so that slots never move: chunk c holds kFirstChunk << c of them.
  Slot* find(std::uint32_t index) const noexcept {
    std::size_t first = 0;
    for (std::size_t c = 0; c < kMaxChunks; ++c) {
      const std::size_t size = kFirstChunk << c;
      if (index < first + size) {
        Slot* const chunk = chunks_[c].load(std::memory_order_acquire);
        return chunk != nullptr ? chunk + (index - first) : nullptr;
      }
      first += size;
    }
    return nullptr;
  }

  void add_chunk() {
    if (owned_.size() == kMaxChunks) throw std::bad_alloc();
    const std::size_t size = kFirstChunk << owned_.size(), first = size - kFirstChunk;
    free_.reserve(first + size);
    owned_.reserve(kMaxChunks);
    owned_.push_back(std::make_unique<Slot[]>(size));
    for (std::size_t i = size; i-- > 0;) {
      owned_.back()[i].word.store((kRetired | 1) << 32, std::memory_order_relaxed);
      free_.push_back(static_cast<std::uint32_t>(first + i));
    }
    chunks_[owned_.size() - 1].store(owned_.back().get(), std::memory_order_release);
  }

  std::mutex mutex_;
  std::vector<std::uint32_t> free_;
  std::vector<std::unique_ptr<Slot[]>> owned_;
  std::array<std::atomic<Slot*>, kMaxChunks> chunks_{};
};

}  // namespace pagedkv::capi
