// General-purpose allocators behind one interface: glibc, jemalloc, mimalloc, oneTBB scalable and Boost.Pool.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace pagedkv::tool {

class Allocator {
 public:
  virtual ~Allocator() = default;
  /// Null if it cannot.
  virtual void* allocate(std::size_t bytes) = 0;
  /// Grows a block, moving its first `old_bytes`; null, and the block as it was, if it cannot.
  virtual void* reallocate(void* block, std::size_t old_bytes, std::size_t bytes) = 0;
  virtual void release(void* block, std::size_t bytes) = 0;
};

/// "glibc", "jemalloc", "mimalloc", "tbb" or "boost-pool". The second to fourth are loaded from their shared libraries,
/// so that the program itself needs none of them.
///
/// Throws BadInput if the name is unknown or the library is not installed.
std::unique_ptr<Allocator> load_allocator(const std::string& name, std::size_t chunk_bytes);

}  // namespace pagedkv::tool
