// Loads allocators and calls them by their own names, so that none replaces another.
#include "replay/allocators.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <boost/pool/pool.hpp>
#include <cstdlib>
#include <cstring>

#include "tool.h"

namespace pagedkv::tool {
namespace {

using AllocateFn = void* (*)(std::size_t);
using ReallocateFn = void* (*)(void*, std::size_t);
using ReleaseFn = void (*)(void*);

/// Whatever offers malloc, realloc and free.
class MallocFamily final : public Allocator {
 public:
  MallocFamily(AllocateFn malloc_fn, ReallocateFn realloc_fn, ReleaseFn free_fn)
      : allocate_(malloc_fn), reallocate_(realloc_fn), release_(free_fn) {}
  void* allocate(std::size_t bytes) override { return allocate_(bytes); }
  void* reallocate(void* block, std::size_t, std::size_t bytes) override { return reallocate_(block, bytes); }
  void release(void* block, std::size_t) override { release_(block); }

 private:
  AllocateFn allocate_;
  ReallocateFn reallocate_;
  ReleaseFn release_;
};

/// The library stays loaded: allocators do not survive being unloaded.
std::unique_ptr<Allocator> load_malloc_family(const char* library, const char* allocate, const char* reallocate,
                                              const char* release) {
  void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw BadInput(fmt::format("cannot load {}: {}", library, dlerror()));
  const auto find = [&](const char* name) {
    void* symbol = dlsym(handle, name);
    if (symbol == nullptr) throw BadInput(fmt::format("{} has no {}", library, name));
    return symbol;
  };
  return std::make_unique<MallocFamily>(reinterpret_cast<AllocateFn>(find(allocate)),
                                        reinterpret_cast<ReallocateFn>(find(reallocate)),
                                        reinterpret_cast<ReleaseFn>(find(release)));
}

/// Runs of chunks from one ordered pool; a block that grows is copied.
class BoostPool final : public Allocator {
 public:
  explicit BoostPool(std::size_t chunk_bytes) : chunk_bytes_(chunk_bytes), pool_(chunk_bytes) {}
  void* allocate(std::size_t bytes) override { return pool_.ordered_malloc(chunks(bytes)); }
  void* reallocate(void* block, std::size_t old_bytes, std::size_t bytes) override {
    void* larger = allocate(bytes);
    if (larger == nullptr) return nullptr;
    std::memcpy(larger, block, std::min(old_bytes, bytes));
    release(block, old_bytes);
    return larger;
  }
  void release(void* block, std::size_t bytes) override { pool_.ordered_free(block, chunks(bytes)); }

 private:
  [[nodiscard]] std::size_t chunks(std::size_t bytes) const { return (bytes + chunk_bytes_ - 1) / chunk_bytes_; }

  std::size_t chunk_bytes_;
  boost::pool<> pool_;
};

}  // namespace

std::unique_ptr<Allocator> load_allocator(const std::string& name, std::size_t chunk_bytes) {
  if (name == "glibc") return std::make_unique<MallocFamily>(std::malloc, std::realloc, std::free);
  if (name == "jemalloc") return load_malloc_family("libjemalloc.so.2", "malloc", "realloc", "free");
  if (name == "mimalloc") return load_malloc_family("libmimalloc.so.2", "mi_malloc", "mi_realloc", "mi_free");
  if (name == "tbb") {
    return load_malloc_family("libtbbmalloc.so.2", "scalable_malloc", "scalable_realloc", "scalable_free");
  }
  if (name == "boost-pool") return std::make_unique<BoostPool>(chunk_bytes);
  throw BadInput(fmt::format("unknown allocator {}", name));
}

}  // namespace pagedkv::tool
