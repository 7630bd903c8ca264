// ConnectionThreads: a thread a connection, made when needed, up to a limit. A stream occupies its thread while it
// lasts. Where the system gives no more threads, those that there are must do.
#pragma once

#include <httplib.h>

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace serving {

class ConnectionThreads final : public httplib::TaskQueue {
 public:
  using MakeThread = std::function<std::thread(std::function<void()>)>;

  /// `make_thread` throws std::system_error if there is none to be had, as std::thread does.
  explicit ConnectionThreads(
      std::size_t max_threads,
      MakeThread make_thread = [](std::function<void()> run) { return std::thread(std::move(run)); })
      : max_threads_(max_threads), make_thread_(std::move(make_thread)) {}
  ConnectionThreads(const ConnectionThreads&) = delete;
  ConnectionThreads& operator=(const ConnectionThreads&) = delete;
  ~ConnectionThreads() override { shutdown(); }

  /// A connection beyond the limit waits for a thread. Without any thread the caller serves it.
  void enqueue(std::function<void()> connection) override {
    {
      const std::lock_guard lock(mutex_);
      const bool is_short = idle_ <= waiting_.size() && threads_.size() < max_threads_;
      if ((is_short && add_thread()) || !threads_.empty()) waiting_.push_back(std::exchange(connection, nullptr));
    }
    changed_.notify_one();
    if (connection) connection();
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
  // False: no memory for its stack, or as many threads as a process may have. The next connection tries again.
  bool add_thread() {
    try {
      threads_.push_back(make_thread_([this] { run(); }));
    } catch (const std::system_error&) {
      return false;
    }
    return true;
  }

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
  const MakeThread make_thread_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> waiting_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool is_stopping_ = false;
};

}  // namespace serving
