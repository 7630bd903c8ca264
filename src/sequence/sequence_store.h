// The inside of SequenceStore: the pool of control blocks, and what all its sequences have in common.
#pragma once

#include <atomic>
#include <boost/pool/pool.hpp>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/spin_lock.h"
#include "pagedkv/page_pool.h"
#include "pagedkv/sequence.h"
#include "sequence/control.h"

namespace pagedkv {

struct PAGEDKV_LOCAL SequenceStore::Impl {
  Impl(std::shared_ptr<PagePool::Impl> page_pool, std::uint32_t tokens_a_page, std::vector<LayerGroup> layer_groups)
      : pool(std::move(page_pool)), page_size(tokens_a_page), groups(std::move(layer_groups)) {}

  const std::shared_ptr<PagePool::Impl> pool;
  const std::uint32_t page_size;         ///< Tokens.
  const std::vector<LayerGroup> groups;  ///< At least one.
  /// Null: whole pages are copied. Set before the first sequence is opened; sequences may outlive who set it.
  std::unique_ptr<const sequence::PageCopier> copier;
  /// Null: pages come as they are. Set before the first sequence is opened.
  std::unique_ptr<sequence::PageCleaner> cleaner;
  std::atomic<std::uint64_t> open_sequences{0};
  std::atomic<std::uint64_t> copied_pages{0};  ///< Copies on write.

  /// A control block for one more sequence. Errors: kOutOfMemory
  static Result<Sequence::Control*> make_control(const std::shared_ptr<Impl>& store) noexcept;
  /// Destroys it; its pages were released before. Drops its hold on the store last.
  static void free_control(Sequence::Control* control) noexcept;

 private:
  SpinLock nodes_lock_;
  boost::pool<boost::default_user_allocator_new_delete> nodes_{sizeof(Sequence::Control)};
};

}  // namespace pagedkv
