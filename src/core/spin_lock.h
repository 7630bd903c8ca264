// A lock of one byte for critical sections of tens of nanoseconds: spin with pause, back off, then yield.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace pagedkv {

/// Tells the core that this is a waiting loop.
inline void cpu_relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

/// Not recursive, not fair. A waiter backs off exponentially, so that the holder can take the lock several times while
/// the line is in its cache, and yields its core once the holder must have been descheduled.
class SpinLock {
 public:
  void lock() noexcept {
    if (locked_.exchange(true, std::memory_order_acquire)) [[unlikely]] {
      lock_slow();
    }
  }
  bool try_lock() noexcept {
    return !locked_.load(std::memory_order_relaxed) && !locked_.exchange(true, std::memory_order_acquire);
  }
  void unlock() noexcept { locked_.store(false, std::memory_order_release); }

 private:
  void lock_slow() noexcept {
    constexpr std::uint32_t kMaxPauses = 64;   // some microseconds with the long pause of recent cores
    constexpr std::uint32_t kRoundsAtMax = 4;  // after these the holder is taken to be off its core
    std::uint32_t pauses = 1;
    std::uint32_t rounds_at_max = 0;
    for (;;) {
      for (std::uint32_t i = 0; i < pauses; ++i) cpu_relax();
      if (try_lock()) return;
      if (pauses < kMaxPauses) {
        pauses *= 2;
      } else if (++rounds_at_max >= kRoundsAtMax) {
        std::this_thread::yield();
      }
    }
  }

  std::atomic<bool> locked_{false};
};

}  // namespace pagedkv
