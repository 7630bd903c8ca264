// Waits by poll, so that a stop wakes whoever waits for a client.
#include "http/connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

namespace serving {
namespace {

constexpr int kFinishMilliseconds = 2000;

thread_local Connection* connection_of_this_thread = nullptr;

bool would_block() noexcept { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

Connection::Connection(socket_t socket, int stop_event, const ConnectionBounds& bounds)
    : socket_(socket), stop_event_(stop_event), bounds_(bounds) {
  connection_of_this_thread = this;
}

Connection::~Connection() { connection_of_this_thread = nullptr; }

Connection* Connection::of_this_thread() noexcept { return connection_of_this_thread; }

bool Connection::wait_to_read(int milliseconds) const noexcept {
  std::array<pollfd, 2> waits{{{socket_, POLLIN, 0}, {stop_event_, POLLIN, 0}}};
  int ready = 0;
  do {
    ready = poll(waits.data(), waits.size(), milliseconds);
  } while (ready < 0 && errno == EINTR);
  return ready > 0 && waits[1].revents == 0;
}

bool Connection::wait_for_request() noexcept {
  return begin_ < end_ || wait_to_read(bounds_.read_timeout_seconds * 1000);
}

bool Connection::is_readable() const { return begin_ < end_ || wait_to_read(bounds_.read_timeout_seconds * 1000); }

ssize_t Connection::read(char* to, std::size_t bytes) {
  if (may_read_ == 0 || !is_readable()) {
    must_close_ = true;
    return -1;
  }
  if (begin_ == end_) {
    const ssize_t received = recv(socket_, buffer_.data(), buffer_.size(), 0);
    if (received <= 0) {
      must_close_ = true;
      return received;
    }
    begin_ = 0;
    end_ = static_cast<std::size_t>(received);
  }
  const std::size_t taken = std::min({bytes, end_ - begin_, static_cast<std::size_t>(may_read_)});
  std::copy_n(buffer_.data() + begin_, taken, to);
  begin_ += taken;
  may_read_ -= taken;
  return static_cast<ssize_t>(taken);
}

bool Connection::is_open() const noexcept {
  char next = 0;
  const ssize_t received = recv(socket_, &next, 1, MSG_PEEK | MSG_DONTWAIT);
  return received > 0 || (received < 0 && would_block());
}

bool Connection::wait_to_write() const noexcept {
  pollfd wait{socket_, POLLOUT, 0};
  return poll(&wait, 1, bounds_.write_timeout_seconds * 1000) > 0;
}

bool Connection::is_writable() const { return wait_to_write() && is_open(); }

// To a client that has closed its side too: it may still read.
ssize_t Connection::write(const char* from, std::size_t bytes) {
  while (wait_to_write()) {
    const ssize_t sent = send(socket_, from, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0 || !would_block()) return sent;
  }
  return -1;
}

void Connection::finish() noexcept {
  using std::chrono::steady_clock;
  ::shutdown(socket_, SHUT_WR);
  const auto end = steady_clock::now() + std::chrono::milliseconds(kFinishMilliseconds);
  while (wait_to_read(kFinishMilliseconds) && steady_clock::now() < end) {
    if (recv(socket_, buffer_.data(), buffer_.size(), MSG_DONTWAIT) <= 0) return;
  }
}

}  // namespace serving
