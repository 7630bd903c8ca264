// ConnectionThreads: a thread a connection, made when needed, up to a limit. A stream occupies its thread while it
// lasts.
#pragma once

#include <httplib.h>

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace serving {

class ConnectionThreads final : public httplib::TaskQueue {
 public:
  explicit ConnectionThreads(std::size_t max_threads) : max_threads_(max_threads) {}
  ConnectionThreads(const ConnectionThreads&) = delete;
  ConnectionThreads& operator=(const ConnectionThreads&) = delete;
  ~ConnectionThreads() override { shutdown(); }

  /// A connection beyond the limit waits for a thread.
  void enqueue(std::function<void()> connection) override {
    {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(std::move(connection));
      if (idle_ < waiting_.size() && threads_.size() < max_threads_) threads_.emplace_back([this] { run(); });
    }
    changed_.notify_one();
  }

  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      ++idle_;
      changed_.wait(lock, [this] { return is_stopping_ || !waiting_.empty(); });
      --idle_;
      if (waiting_.empty()) return;  // Stopping, and nothing is left.
      const std::function<void()> connection = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      connection();
      lock.lock();
    }
  }

  const std::size_t max_threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> waiting_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool is_stopping_ = false;
};

}  // namespace serving
