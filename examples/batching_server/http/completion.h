// Completion: one HTTP call in progress. The engine's thread fills it, the connection's thread empties it.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "http/api_request.h"
#include "http/metrics.h"
#include "http/text_assembler.h"

namespace serving {

class Completion : public std::enable_shared_from_this<Completion> {
 public:
  Completion(ApiCall call, std::string model_name, const Tokenizer& tokenizer, Engine& engine, Metrics& metrics);

  /// Submits every prompt, or none. Throws ApiError: busy, draining, too long for the pool.
  void submit();
  /// The client has gone: its pages are free before the next step.
  void cancel();

  /// The next server-sent event, "data: ..." and a blank line; empty if none came within `seconds`; none after the
  /// last.
  std::optional<std::string> next_event(double seconds);
  /// The whole answer, if it is complete within `seconds`. Throws ApiError: it failed midway, or was given up by a
  /// server that shuts down.
  std::optional<std::string> whole_answer(double seconds);

 private:
  // A token whose log-probability is wanted.
  struct LoggedToken {
    Event event;
    std::size_t text_offset;  // Characters before it, an echoed prompt's included.
  };
  // A piece of one choice's text, with the tokens that it came from.
  struct Piece {
    std::uint32_t choice = 0;
    std::string text = {};
    std::vector<LoggedToken> tokens = {};  // Only if log-probabilities are wanted.
    FinishReason finish = FinishReason::kNone;
    bool is_first = false;
  };
  struct Choice {
    TextAssembler assembler;
    std::string text;
    std::size_t echoed_characters = 0;
    std::vector<LoggedToken> tokens = {};
    FinishReason finish = FinishReason::kNone;
    double last_token_time = 0;
    bool has_begun = false;
    bool has_sent = false;  // A piece: the first token may give no text yet.
  };

  bool hear(std::size_t prompt, const Event& event);
  [[nodiscard]] Json envelope(const char* object) const;
  [[nodiscard]] Json usage_json() const;
  [[nodiscard]] Json chunk_json(const Piece& piece) const;
  [[nodiscard]] Json logprobs_json(const std::vector<LoggedToken>& tokens) const;

  const ApiCall call_;
  const std::string model_name_, id_;
  const std::int64_t created_;
  const double arrived_;
  const Tokenizer& tokenizer_;
  Engine& engine_;
  Metrics& metrics_;
  std::vector<RequestId> request_ids_;

  std::mutex mutex_;  // Guards what follows.
  std::condition_variable changed_;
  std::vector<Choice> choices_;  // [prompts][choices of each]
  std::deque<Piece> pieces_;     // Not sent yet.
  std::size_t open_choices_;
  std::uint64_t output_tokens_ = 0;
  std::vector<std::uint64_t> cached_tokens_;  // [prompts]
  std::optional<ApiError> failure_;           // Why no more comes, if some choice ended before its time.
  bool sent_usage_ = false, sent_done_ = false;
};

/// A random id such as "cmpl-4f...", as OpenAI's answers carry.
std::string random_id(const char* prefix);

}  // namespace serving
