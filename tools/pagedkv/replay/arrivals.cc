// Merges sessions into one queue of requests.
#include "replay/arrivals.h"

#include <algorithm>
#include <utility>

namespace pagedkv::tool {

Arrivals::Arrivals(std::unique_ptr<SessionSource> source, ArrivalMode mode, std::uint32_t max_open_sessions)
    : source_(std::move(source)), mode_(mode), max_open_sessions_(max_open_sessions) {}

void Arrivals::read_ahead() {
  if (ahead_ || source_ended_) return;
  ahead_.emplace();
  if (!source_->next(*ahead_)) {
    ahead_.reset();
    source_ended_ = true;
  }
}

/// Begins every session that could hold the next request.
void Arrivals::open_sessions() {
  for (read_ahead(); ahead_; read_ahead()) {
    const bool trace = mode_ == ArrivalMode::kTrace;
    if (trace && !ready_.empty() && ready_.top().at_s <= ahead_->start_s + ahead_->turns[0].offset_s) return;
    if (!trace && (!ready_.empty() || num_open_ >= max_open_sessions_)) return;
    std::uint64_t slot = open_.size();
    if (free_slots_.empty()) {
      open_.emplace_back();
    } else {
      slot = free_slots_.back();
      free_slots_.pop_back();
    }
    open_[slot] = {std::move(*ahead_), num_opened_++, 0};
    ahead_.reset();
    ++num_open_;
    const Session& session = open_[slot].session;
    ready_.push({trace ? session.start_s + session.turns[0].offset_s : 0, num_ordered_++, slot});
  }
}

const Request* Arrivals::peek(double now_s) {
  if (!peeked_) {
    open_sessions();
    if (ready_.empty() || ready_.top().at_s > now_s) return nullptr;
    const std::uint64_t slot = ready_.top().session;
    ready_.pop();
    Open& open = open_[slot];
    const std::uint64_t number = open.number << 24 | open.next_turn;
    peeked_ = Request{std::move(open.session.turns[open.next_turn]), open.session.block_tokens, number, slot};
    ++open.next_turn;
  }
  return &*peeked_;
}

Request Arrivals::take() {
  Request request = std::move(*peeked_);
  peeked_.reset();
  return request;
}

void Arrivals::finished(std::uint64_t session, double now_s) {
  Open& open = open_[session];
  if (open.next_turn == open.session.turns.size()) {
    open = {};
    free_slots_.push_back(session);
    --num_open_;
    return;
  }
  const double due_s = open.session.start_s + open.session.turns[open.next_turn].offset_s;
  ready_.push({mode_ == ArrivalMode::kTrace ? std::max(due_s, now_s) : now_s, num_ordered_++, session});
}

double Arrivals::next_arrival_s() {
  if (peeked_) return -std::numeric_limits<double>::infinity();
  open_sessions();
  return ready_.empty() ? std::numeric_limits<double>::infinity() : ready_.top().at_s;
}

bool Arrivals::drained() {
  if (peeked_) return false;
  open_sessions();
  return ready_.empty();
}

}  // namespace pagedkv::tool
