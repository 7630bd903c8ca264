// Connection: one client's socket as httplib reads and writes it, which takes no more than a request may send.
#pragma once

#include <httplib.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace serving {

struct ConnectionBounds {
  std::uint64_t max_head_bytes = 64 << 10;  ///< Request line and headers; httplib itself takes lines of any length.
  std::uint64_t max_body_bytes = 0;         ///< As the bytes come, with the framing of chunks.
  int read_timeout_seconds = 10, write_timeout_seconds = 10;
};

/// Lives on the thread that serves it. Borrows `socket`, and `stop_event`: while that is readable, no read waits.
class Connection final : public httplib::Stream {
 public:
  Connection(socket_t socket, int stop_event, const ConnectionBounds& bounds);
  ~Connection() override;

  /// That of the request which this thread answers; httplib does not tell its handlers. Null on other threads.
  static Connection* of_this_thread() noexcept;

  /// Waits for the next request's first byte. False: there will be none.
  [[nodiscard]] bool wait_for_request() noexcept;
  void begin_head() noexcept { may_read_ = bounds_.max_head_bytes; }
  void begin_body() noexcept { may_read_ = bounds_.max_body_bytes; }

  /// A body that is not read to its end would be taken for the next request.
  void close_after_answer() noexcept { must_close_ = true; }
  [[nodiscard]] bool must_close() const noexcept { return must_close_; }
  /// Ends the answer so that a client which still sends can read it: closed at once, the system would take it back.
  void finish() noexcept;

  /// False once the client has closed its side.
  [[nodiscard]] bool is_open() const noexcept;

  [[nodiscard]] bool is_readable() const override;
  [[nodiscard]] bool is_writable() const override;
  ssize_t read(char* to, std::size_t bytes) override;
  ssize_t write(const char* from, std::size_t bytes) override;
  void get_remote_ip_and_port(std::string& /*ip*/, int& /*port*/) const override {}  // Nobody asks.
  void get_local_ip_and_port(std::string& /*ip*/, int& /*port*/) const override {}
  [[nodiscard]] socket_t socket() const override { return socket_; }

 private:
  [[nodiscard]] bool wait_to_read(int milliseconds) const noexcept;
  [[nodiscard]] bool wait_to_write() const noexcept;

  const socket_t socket_;
  const int stop_event_;
  const ConnectionBounds bounds_;
  std::uint64_t may_read_ = 0;
  bool must_close_ = false;
  std::array<char, 4096> buffer_;  // httplib reads lines byte by byte.
  std::size_t begin_ = 0, end_ = 0;
};

}  // namespace serving
