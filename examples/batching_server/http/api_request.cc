// Every member of a call is checked before anything is computed.
#include "http/api_request.h"

#include <cmath>
#include <limits>
#include <random>

#include "http/chat_template.h"

namespace serving {
namespace {

constexpr int kMaxJsonDepth = 32;
constexpr std::size_t kMaxStops = 4, kMaxSaltBytes = 256, kMaxStopBytes = 256;

Json parse_body(const std::string& body) {
  bool too_deep = false;
  const auto watch_depth = [&](int depth, Json::parse_event_t, Json&) {
    too_deep = too_deep || depth > kMaxJsonDepth;
    return !too_deep;
  };
  Json json;
  try {
    json = Json::parse(body, watch_depth);
  } catch (const Json::exception&) {  // Bad UTF-8 and lone surrogates too.
    throw invalid_request("We could not parse the JSON body of your request: it is not valid JSON in UTF-8.");
  }
  if (too_deep) throw invalid_request("The JSON body of your request is nested too deep.");
  if (!json.is_object()) throw invalid_request("The body of your request is not a JSON object.");
  return json;
}

/// Reads members one at a time; a null counts as absent, as clients send it.
class Members {
 public:
  explicit Members(const Json& object) : object_(object) {}

  [[nodiscard]] const Json* find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  [[nodiscard]] bool boolean(const char* key, bool fallback) const {
    const Json* value = find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) throw invalid_request(std::string("'") + key + "' must be true or false.", key);
    return value->get<bool>();
  }
  [[nodiscard]] double number(const char* key, double fallback, double least, double most) const {
    const Json* value = find(key);
    if (value == nullptr) return fallback;
    const bool fits = value->is_number() && value->get<double>() >= least && value->get<double>() <= most;
    if (!fits) throw out_of_range(key, Json(least).dump(), Json(most).dump());
    return value->get<double>();
  }
  [[nodiscard]] std::int64_t integer(const char* key, std::int64_t fallback, std::int64_t least,
                                     std::int64_t most) const {
    const Json* value = find(key);
    if (value == nullptr) return fallback;
    const bool is_huge = value->is_number_unsigned() && value->get<std::uint64_t>() > INT64_MAX;
    const bool fits = value->is_number_integer() && !is_huge && value->get<std::int64_t>() >= least &&
                      value->get<std::int64_t>() <= most;
    if (!fits) throw out_of_range(key, std::to_string(least), std::to_string(most));
    return value->get<std::int64_t>();
  }
  [[nodiscard]] std::string text(const char* key, const std::string& fallback, std::size_t max_bytes) const {
    const Json* value = find(key);
    if (value == nullptr) return fallback;
    if (!value->is_string() || value->get_ref<const std::string&>().size() > max_bytes) {
      throw invalid_request(
          std::string("'") + key + "' must be a string of at most " + std::to_string(max_bytes) + " bytes.", key);
    }
    return value->get<std::string>();
  }

 private:
  static ApiError out_of_range(const char* key, const std::string& least, const std::string& most) {
    return invalid_request(std::string("'") + key + "' must be a number between " + least + " and " + most + ".", key);
  }
  const Json& object_;
};

void refuse_what_is_missing(const Members& members, bool is_chat) {
  for (const char* key : {"tools", "functions", "audio", "suffix", "response_format"}) {
    const Json* value = members.find(key);
    if (value == nullptr || (value->is_array() && value->empty())) continue;
    if (value->is_object() && value->value("type", Json()) == "text") continue;
    throw invalid_request(std::string("'") + key + "' is not supported by this server.", key);
  }
  if (is_chat && members.find("messages") == nullptr) throw invalid_request("'messages' is required.", "messages");
}

SamplingParams read_sampling(const Members& members, bool is_chat, const ApiLimits& limits) {
  SamplingParams params;
  params.temperature = static_cast<float>(members.number("temperature", 1, 0, 2));
  params.top_p = static_cast<float>(members.number("top_p", 1, 0, 1));
  params.top_k = static_cast<std::uint32_t>(std::max<std::int64_t>(members.integer("top_k", 0, -1, INT32_MAX), 0));
  params.presence_penalty = static_cast<float>(members.number("presence_penalty", 0, -2, 2));
  params.frequency_penalty = static_cast<float>(members.number("frequency_penalty", 0, -2, 2));
  params.seed = members.find("seed") != nullptr
                    ? static_cast<std::uint64_t>(members.integer("seed", 0, INT64_MIN, INT64_MAX))
                    : std::random_device{}();
  if (is_chat) {
    params.wants_logprob = members.boolean("logprobs", false);
    params.num_logprobs = static_cast<std::uint32_t>(members.integer("top_logprobs", 0, 0, limits.max_logprobs));
  } else if (members.find("logprobs") != nullptr) {
    params.wants_logprob = true;
    params.num_logprobs = static_cast<std::uint32_t>(members.integer("logprobs", 0, 0, limits.max_logprobs));
  }
  if (const Json* bias = members.find("logit_bias")) {
    if (!bias->is_object() || bias->size() > 1024)
      throw invalid_request("'logit_bias' must be a small object.", "logit_bias");
    for (const auto& [token, value] : bias->items()) {
      char* end = nullptr;
      const long id = std::strtol(token.c_str(), &end, 10);
      const bool is_id = !token.empty() && *end == '\0' && id >= 0 && id <= INT32_MAX;
      if (!is_id || !value.is_number() || std::abs(value.get<double>()) > 100) {
        throw invalid_request("'logit_bias' must map token ids to numbers between -100 and 100.", "logit_bias");
      }
      params.logit_bias.emplace_back(static_cast<Token>(id), value.get<float>());
    }
  }
  return params;
}

std::vector<std::string> read_stops(const Members& members) {
  const Json* value = members.find("stop");
  if (value == nullptr) return {};
  std::vector<std::string> stops;
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& stop : list) {
    if (!stop.is_string() || stop.get_ref<const std::string&>().size() > kMaxStopBytes) {
      throw invalid_request("'stop' must be a short string or a list of them.", "stop");
    }
    if (!stop.get_ref<const std::string&>().empty()) stops.push_back(stop.get<std::string>());
  }
  if (stops.size() > kMaxStops) throw invalid_request("'stop' may have at most 4 strings.", "stop");
  return stops;
}

std::vector<Token> read_token_ids(const Json& list) {
  std::vector<Token> tokens;
  for (const Json& id : list) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() > INT32_MAX) {
      throw invalid_request("'prompt' has a token id that is not a number of the vocabulary.", "prompt");
    }
    tokens.push_back(id.get<Token>());
  }
  return tokens;
}

// A string, a list of strings, a list of token ids, or a list of such lists.
std::vector<std::vector<Token>> read_prompts(const Members& members, const ApiLimits& limits,
                                             const Tokenizer& tokenizer) {
  const Json* prompt = members.find("prompt");
  if (prompt == nullptr) return {tokenizer.encode_prompt("")};
  if (prompt->is_string()) return {tokenizer.encode_prompt(prompt->get_ref<const std::string&>())};
  if (!prompt->is_array() || prompt->empty()) {
    throw invalid_request("'prompt' must be a string, a list of strings, or token ids.", "prompt");
  }
  if (prompt->front().is_number()) return {read_token_ids(*prompt)};
  if (prompt->size() > limits.max_choices) throw invalid_request("'prompt' has too many prompts.", "prompt");
  std::vector<std::vector<Token>> prompts;
  for (const Json& one : *prompt) {
    if (one.is_string()) {
      prompts.push_back(tokenizer.encode_prompt(one.get_ref<const std::string&>()));
    } else if (one.is_array()) {
      prompts.push_back(read_token_ids(one));
    } else {
      throw invalid_request("'prompt' must be a string, a list of strings, or token ids.", "prompt");
    }
  }
  return prompts;
}

std::string read_content(const Json& content) {
  if (content.is_string()) return content.get<std::string>();
  std::string text;
  if (!content.is_array())
    throw invalid_request("A message's 'content' must be a string or a list of parts.", "messages");
  for (const Json& part : content) {
    const bool is_text =
        part.is_object() && part.value("type", Json()) == "text" && part.contains("text") && part["text"].is_string();
    if (!is_text) throw invalid_request("Only parts of type 'text' are supported.", "messages");
    text += part["text"].get<std::string>();
  }
  return text;
}

std::vector<ChatMessage> read_messages(const Json& list) {
  if (!list.is_array() || list.empty())
    throw invalid_request("'messages' must be a list with at least one message.", "messages");
  std::vector<ChatMessage> messages;
  for (const Json& message : list) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string() ||
        !message.contains("content")) {
      throw invalid_request("Every message needs a 'role' and a 'content'.", "messages");
    }
    messages.push_back({message["role"].get<std::string>(), read_content(message["content"])});
  }
  return messages;
}

/// Tokens that nobody asked for in number: a chat's are all that fit the context and, beams side by side, the pool.
std::uint64_t default_tokens(std::size_t prompt_tokens, const Request& request, bool is_chat, const ApiLimits& limits) {
  std::uint64_t total = limits.max_positions;
  if (limits.pool_pages > 0) {
    const std::uint64_t pages = limits.pool_pages / std::max<std::uint32_t>(request.beam_width, 1);
    total = std::min(total, pages * limits.page_size);
  }
  const std::uint64_t room = total > prompt_tokens ? total - prompt_tokens : 0;
  return std::max<std::uint64_t>(is_chat ? room : std::min<std::uint64_t>(room, limits.default_max_tokens), 1);
}

/// Tokens to generate: what was asked for (-1 = nothing), or the default. Refuses what does not fit the context.
std::uint32_t completion_tokens(std::size_t prompt_tokens, std::int64_t asked, const Request& request, bool is_chat,
                                const ApiLimits& limits) {
  const std::uint64_t room = limits.max_positions > prompt_tokens ? limits.max_positions - prompt_tokens : 0;
  const std::int64_t wanted =
      asked > 0 ? asked : static_cast<std::int64_t>(default_tokens(prompt_tokens, request, is_chat, limits));
  if (room == 0 || static_cast<std::uint64_t>(wanted) > room) {
    throw ApiError(400, "invalid_request_error",
                   "This model's maximum context length is " + std::to_string(limits.max_positions) +
                       " tokens. However, you requested " +
                       std::to_string(prompt_tokens + static_cast<std::uint64_t>(wanted)) + " tokens (" +
                       std::to_string(prompt_tokens) + " in the prompt, " + std::to_string(wanted) +
                       " in the completion).",
                   "context_length_exceeded", is_chat ? "messages" : "prompt");
  }
  return static_cast<std::uint32_t>(wanted);
}

}  // namespace

ApiCall read_call(const std::string& body, bool is_chat, const ApiLimits& limits, const Tokenizer& tokenizer) {
  const Json json = parse_body(body);
  const Members members(json);
  const std::string model = members.text("model", "", 512);
  if (model.empty()) throw invalid_request("You must provide a 'model'.", "model");
  if (model != limits.model_name) {
    throw ApiError(404, "invalid_request_error", "The model '" + model + "' does not exist.", "model_not_found",
                   "model");
  }
  refuse_what_is_missing(members, is_chat);

  ApiCall call;
  call.is_chat = is_chat;
  call.stream = members.boolean("stream", false);
  if (const Json* options = members.find("stream_options")) {
    if (!options->is_object()) throw invalid_request("'stream_options' must be an object.", "stream_options");
    call.include_usage = Members(*options).boolean("include_usage", false);
  }
  call.stop = read_stops(members);

  Request base;
  base.sampling = read_sampling(members, is_chat, limits);
  base.num_choices = static_cast<std::uint32_t>(members.integer("n", 1, 1, limits.max_choices));
  base.priority = static_cast<int>(members.integer("priority", 0, -1000, 1000));
  base.tenant = members.text("cache_salt", "", kMaxSaltBytes);
  base.draft_tokens = static_cast<std::uint32_t>(members.integer("draft_tokens", 0, 0, 32));
  if (!members.boolean("ignore_eos", false)) base.stop_tokens = tokenizer.stop_tokens();
  if (members.boolean("use_beam_search", false)) {
    if (call.stream) throw invalid_request("Beam search cannot be streamed.", "use_beam_search");
    if (base.sampling.wants_logprob) throw invalid_request("Beam search keeps no 'logprobs'.", "logprobs");
    base.beam_width = static_cast<std::uint32_t>(members.integer(
        "best_of", std::max<std::uint32_t>(base.num_choices, 4), base.num_choices, limits.max_beam_width));
    base.length_penalty = members.number("length_penalty", 1, -10, 10);
  } else if (members.integer("best_of", base.num_choices, 1, limits.max_choices) != base.num_choices) {
    throw invalid_request("'best_of' beyond 'n' needs 'use_beam_search'.", "best_of");
  }

  std::vector<std::vector<Token>> prompts;
  if (is_chat) {
    prompts = {encode_chat(tokenizer, read_messages(*members.find("messages")))};
  } else {
    prompts = read_prompts(members, limits, tokenizer);
  }
  if (prompts.size() * base.num_choices > limits.max_choices)
    throw invalid_request("Too many prompts and choices.", "n");

  const char* max_key =
      is_chat && members.find("max_completion_tokens") != nullptr ? "max_completion_tokens" : "max_tokens";
  const std::int64_t asked = members.integer(max_key, -1, 1, INT32_MAX);
  const bool echo = !is_chat && members.boolean("echo", false);
  for (std::vector<Token>& prompt : prompts) {
    if (prompt.empty()) throw invalid_request("A prompt has no tokens.", "prompt");
    const std::uint32_t wanted = completion_tokens(prompt.size(), asked, base, is_chat, limits);
    call.echoed.push_back(echo ? tokenizer.decode(prompt) : std::string());
    Request request = base;
    request.prompt = std::move(prompt);
    request.max_tokens = wanted;
    call.requests.push_back(std::move(request));
  }
  return call;
}

}  // namespace serving
