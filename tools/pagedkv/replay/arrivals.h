// Which request is next: the queue in front of the server, in virtual time.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <queue>
#include <vector>

#include "replay/session.h"

namespace pagedkv::tool {

enum class ArrivalMode {
  kTrace,   ///< A request arrives at its time, but not before the one before it in its session has finished.
  kClosed,  ///< Times are ignored: the queue is never empty while requests are left.
};

/// One request on its way through the server.
struct Request {
  Turn turn;
  std::uint32_t block_tokens = 1;
  std::uint64_t number = 0;   ///< Unique, and the same in every replay of the source.
  std::uint64_t session = 0;  ///< Names its session to Arrivals::finished.
};

/// Hands out requests in order of arrival. Holds only sessions that have begun and not ended.
class Arrivals {
 public:
  /// With kClosed at most `max_open_sessions` sessions are in progress at once.
  Arrivals(std::unique_ptr<SessionSource> source, ArrivalMode mode, std::uint32_t max_open_sessions);

  /// The request that is next at time `now_s`, or null if none has arrived. It stays next until it is taken.
  const Request* peek(double now_s);
  Request take();
  /// Lets the next turn of the session of a taken request arrive.
  void finished(std::uint64_t session, double now_s);
  /// When the next request arrives if nothing finishes before; infinity if none will.
  double next_arrival_s();
  /// Nothing is left to hand out now or, once all that was taken has finished, later.
  bool drained();

 private:
  struct Open {
    Session session;
    std::uint64_t number = 0;
    std::size_t next_turn = 0;
  };
  struct Ready {
    double at_s;
    std::uint64_t order;
    std::uint64_t session;
    bool operator>(const Ready& other) const { return at_s != other.at_s ? at_s > other.at_s : order > other.order; }
  };

  void open_sessions();
  void read_ahead();

  std::unique_ptr<SessionSource> source_;
  ArrivalMode mode_;
  std::uint32_t max_open_sessions_;
  std::optional<Session> ahead_;  ///< Read, but not begun.
  bool source_ended_ = false;
  std::vector<Open> open_;  ///< By session number; freed slots are reused.
  std::vector<std::uint64_t> free_slots_;
  std::uint64_t num_open_ = 0;
  std::uint64_t num_ordered_ = 0, num_opened_ = 0;
  std::priority_queue<Ready, std::vector<Ready>, std::greater<>> ready_;
  std::optional<Request> peeked_;
};

}  // namespace pagedkv::tool
