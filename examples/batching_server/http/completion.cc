// Events in, JSON out.
#include "http/completion.h"

#include <chrono>
#include <random>

namespace serving {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Json finish_json(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    default: return nullptr;
  }
}

std::string server_sent(const Json& json) {
  return "data: " + json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n\n";
}

ApiError refusal(SubmitError reason) {
  switch (reason) {
    case SubmitError::kBusy:
      return {429, "rate_limit_exceeded", "The server is at its limit of requests. Try again later.",
              "rate_limit_exceeded"};
    case SubmitError::kDraining: return {503, "server_error", "The server is shutting down.", "shutting_down"};
    case SubmitError::kBadToken: return invalid_request("A prompt has a token outside the vocabulary.", "prompt");
    case SubmitError::kTooLong:
      return {400, "invalid_request_error", "The prompt and its output do not fit the server's memory.",
              "context_length_exceeded", "prompt"};
    default: return invalid_request("A prompt has no tokens.", "prompt");
  }
}

// A choice that ended before its time.
std::optional<ApiError> failure_of(const Event& event) {
  switch (event.finish) {
    case FinishReason::kFailed: return ApiError(500, "server_error", event.failure);
    case FinishReason::kCancelled: return refusal(SubmitError::kDraining);  // Or by the client, who reads no answer.
    default: return std::nullopt;
  }
}

}  // namespace

std::string random_id(const char* prefix) {
  static thread_local std::mt19937_64 random{std::random_device{}()};
  std::string id = prefix;
  for (int i = 0; i < 24; ++i) id += "0123456789abcdefghijklmnopqrstuvwxyz"[random() % 36];
  return id;
}

Completion::Completion(ApiCall call, std::string model_name, const Tokenizer& tokenizer, Engine& engine,
                       Metrics& metrics)
    : call_(std::move(call)),
      model_name_(std::move(model_name)),
      id_(random_id(call_.is_chat ? "chatcmpl-" : "cmpl-")),
      created_(std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch())
                   .count()),
      arrived_(now_seconds()),
      tokenizer_(tokenizer),
      engine_(engine),
      metrics_(metrics),
      cached_tokens_(call_.requests.size()) {
  for (std::size_t prompt = 0; prompt < call_.requests.size(); ++prompt) {
    for (std::uint32_t i = 0; i < call_.requests[prompt].num_choices; ++i) {
      choices_.push_back({.assembler = TextAssembler(tokenizer_, call_.requests[prompt].prompt.back(), call_.stop),
                          .text = call_.echoed[prompt],
                          .echoed_characters = count_characters(call_.echoed[prompt])});
    }
  }
  open_choices_ = choices_.size();
}

void Completion::submit() {
  // The listener keeps the call alive until its last event, even if the connection is gone by then.
  for (std::size_t prompt = 0; prompt < call_.requests.size(); ++prompt) {
    RequestId id = 0;
    const SubmitError refused = engine_.submit(
        call_.requests[prompt],
        [self = shared_from_this(), prompt](const Event& event) { return self->hear(prompt, event); }, &id);
    if (refused != SubmitError::kNone) {
      cancel();
      throw refusal(refused);
    }
    request_ids_.push_back(id);
  }
}

void Completion::cancel() {
  for (RequestId id : request_ids_) engine_.cancel(id);
}

// On the engine's thread.
bool Completion::hear(std::size_t prompt, const Event& event) {
  const double now = now_seconds();
  const std::uint32_t index = static_cast<std::uint32_t>(prompt) * call_.requests[prompt].num_choices + event.choice;
  const std::lock_guard lock(mutex_);
  Choice& choice = choices_[index];
  cached_tokens_[prompt] = event.cached_tokens;
  Piece piece{.choice = index, .is_first = !choice.has_sent};
  if (piece.is_first && call_.stream) piece.text = choice.text;  // An echoed prompt.
  if (event.finish == FinishReason::kNone) {
    ++output_tokens_;
    if (choice.has_begun) {
      metrics_.observe_output_token(now - choice.last_token_time);
    } else {
      metrics_.observe_first_token(now - arrived_);
    }
    choice.last_token_time = now;
    const std::size_t text_offset = choice.echoed_characters + choice.assembler.num_characters();
    const std::string text = choice.assembler.push(event.token);
    piece.text += text;
    choice.text += text;
    if (call_.requests[prompt].sampling.wants_logprob) {
      piece.tokens.push_back({event, text_offset});
      choice.tokens.push_back({event, text_offset});
    }
  } else {
    const std::string text = choice.assembler.finish();
    piece.text += text;
    choice.text += text;
    piece.finish = choice.finish = event.finish;
    if (const auto failure = failure_of(event)) failure_ = failure;
    if (--open_choices_ == 0 && !failure_) metrics_.observe_request(now - arrived_);
  }
  choice.has_begun = true;
  const bool says_something = !piece.text.empty() || !piece.tokens.empty() || piece.finish != FinishReason::kNone;
  if (call_.stream && says_something) {
    pieces_.push_back(std::move(piece));
    choice.has_sent = true;
  }
  if (call_.stream ? says_something : open_choices_ == 0) changed_.notify_all();
  return !choice.assembler.is_stopped();
}

Json Completion::envelope(const char* object) const {
  return {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_name_}};
}

Json Completion::usage_json() const {
  std::uint64_t prompt_tokens = 0, cached = 0;
  for (const Request& request : call_.requests) prompt_tokens += request.prompt.size();
  for (std::uint64_t tokens : cached_tokens_) cached += tokens;
  return {{"prompt_tokens", prompt_tokens},
          {"completion_tokens", output_tokens_},
          {"total_tokens", prompt_tokens + output_tokens_},
          {"prompt_tokens_details", {{"cached_tokens", cached}}}};
}

Json Completion::logprobs_json(const std::vector<LoggedToken>& tokens) const {
  const auto text_of = [&](Token token) { return tokenizer_.piece(Token{0}, token); };
  const auto bytes_of = [](const std::string& text) {
    Json bytes = Json::array();
    for (char c : text) bytes.push_back(static_cast<unsigned char>(c));
    return bytes;
  };
  if (call_.is_chat) {
    Json content = Json::array();
    for (const auto& [event, text_offset] : tokens) {
      Json likely = Json::array();
      for (const TokenLogprob& t : event.most_likely) {
        likely.push_back({{"token", text_of(t.token)}, {"logprob", t.logprob}, {"bytes", bytes_of(text_of(t.token))}});
      }
      const std::string text = text_of(event.token);
      content.push_back(
          {{"token", text}, {"logprob", event.logprob.logprob}, {"bytes", bytes_of(text)}, {"top_logprobs", likely}});
    }
    return {{"content", content}};
  }
  Json json = {{"tokens", Json::array()},
               {"token_logprobs", Json::array()},
               {"top_logprobs", Json::array()},
               {"text_offset", Json::array()}};
  for (const auto& [event, text_offset] : tokens) {
    Json likely = Json::object();
    for (const TokenLogprob& t : event.most_likely) likely[text_of(t.token)] = t.logprob;
    json["tokens"].push_back(text_of(event.token));
    json["token_logprobs"].push_back(event.logprob.logprob);
    json["top_logprobs"].push_back(likely);
    json["text_offset"].push_back(text_offset);
  }
  return json;
}

Json Completion::chunk_json(const Piece& piece) const {
  Json choice = {{"index", piece.choice},
                 {"logprobs", piece.tokens.empty() ? Json(nullptr) : logprobs_json(piece.tokens)},
                 {"finish_reason", finish_json(piece.finish)}};
  if (call_.is_chat) {
    Json delta = Json::object();
    if (piece.is_first) delta["role"] = "assistant";
    if (piece.is_first || !piece.text.empty()) delta["content"] = piece.text;
    choice["delta"] = delta;
  } else {
    choice["text"] = piece.text;
  }
  Json chunk = envelope(call_.is_chat ? "chat.completion.chunk" : "text_completion");
  chunk["choices"] = Json::array({choice});
  if (call_.include_usage) chunk["usage"] = nullptr;
  return chunk;
}

std::optional<std::string> Completion::next_event(double seconds) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                    [this] { return !pieces_.empty() || open_choices_ == 0; });
  if (!pieces_.empty()) {
    // Everything that is there goes out in one write.
    std::deque<Piece> pieces;
    pieces.swap(pieces_);
    const std::optional<ApiError> failure = failure_;
    lock.unlock();
    std::string events;
    for (const Piece& piece : pieces) {
      if (piece.finish == FinishReason::kFailed || piece.finish == FinishReason::kCancelled) {
        events += server_sent(failure->to_json());
      } else {
        events += server_sent(chunk_json(piece));
      }
    }
    return events;
  }
  if (open_choices_ > 0) return "";
  if (call_.include_usage && !sent_usage_) {
    sent_usage_ = true;
    Json chunk = envelope(call_.is_chat ? "chat.completion.chunk" : "text_completion");
    chunk["choices"] = Json::array();
    chunk["usage"] = usage_json();
    return server_sent(chunk);
  }
  if (sent_done_) return std::nullopt;
  sent_done_ = true;
  return "data: [DONE]\n\n";
}

std::optional<std::string> Completion::whole_answer(double seconds) {
  std::unique_lock lock(mutex_);
  const bool is_complete =
      changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return open_choices_ == 0; });
  if (!is_complete) return std::nullopt;
  if (failure_) throw *failure_;
  Json answer = envelope(call_.is_chat ? "chat.completion" : "text_completion");
  answer["choices"] = Json::array();
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    Json json = {{"index", i},
                 {"logprobs", choice.tokens.empty() ? Json(nullptr) : logprobs_json(choice.tokens)},
                 {"finish_reason", finish_json(choice.finish)}};
    if (call_.is_chat) {
      json["message"] = {{"role", "assistant"}, {"content", choice.text}};
    } else {
      json["text"] = choice.text;
    }
    answer["choices"].push_back(json);
  }
  answer["usage"] = usage_json();
  return answer.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace serving
