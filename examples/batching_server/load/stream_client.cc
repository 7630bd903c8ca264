// A server-sent events reader over httplib.
#include "load/stream_client.h"

#include <httplib.h>

#include <chrono>
#include <nlohmann/json.hpp>

namespace serving::load {
namespace {

constexpr int kTimeoutSeconds = 600;  // A request may wait long in a queue under an open loop.

// Splits what arrives into events and hears those that matter.
class EventReader {
 public:
  explicit EventReader(Outcome& outcome) : outcome_(outcome) {}

  bool read(const char* data, std::size_t bytes) {
    buffer_.append(data, bytes);
    for (std::size_t end; (end = buffer_.find("\n\n")) != std::string::npos; buffer_.erase(0, end + 2)) {
      const std::string_view event = std::string_view(buffer_).substr(0, end);
      if (!event.starts_with("data: ")) continue;
      try {
        hear(event.substr(6));
      } catch (const nlohmann::json::exception&) {
        return false;  // JSON of another shape: no more is read of this answer, and it counts as lost.
      }
    }
    return true;
  }

 private:
  void hear(std::string_view json_text) {
    if (json_text == "[DONE]") {
      outcome_.is_complete = has_finished_;
      return;
    }
    const auto json = nlohmann::json::parse(json_text, nullptr, false);
    if (json.is_discarded() || json.contains("error")) return;
    if (const auto usage = json.find("usage"); usage != json.end() && usage->is_object()) {
      outcome_.tokens = usage->value("completion_tokens", 0U);
    }
    for (const auto& choice : json.value("choices", nlohmann::json::array())) {
      outcome_.last = steady_seconds();
      if (outcome_.first == 0) outcome_.first = outcome_.last;
      has_finished_ = has_finished_ || choice.value("finish_reason", nlohmann::json()).is_string();
    }
  }

  Outcome& outcome_;
  std::string buffer_;
  bool has_finished_ = false;
};

}  // namespace

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Outcome stream_completion(const std::string& url, const std::string& model, const TraceRequest& request) {
  Outcome outcome;
  EventReader reader(outcome);
  const nlohmann::json body = {{"model", model},
                               {"prompt", request.prompt},
                               {"max_tokens", request.output_tokens},
                               {"temperature", 0},
                               {"ignore_eos", true},
                               {"stream", true},
                               {"stream_options", {{"include_usage", true}}}};
  httplib::Client client(url);
  client.set_read_timeout(kTimeoutSeconds);
  client.set_tcp_nodelay(true);
  httplib::Request http;
  http.method = "POST";
  http.path = "/v1/completions";
  http.set_header("Content-Type", "application/json");
  http.body = body.dump();
  http.content_receiver = [&](const char* data, std::size_t bytes, std::uint64_t, std::uint64_t) {
    return reader.read(data, bytes);
  };
  outcome.sent = steady_seconds();
  if (const auto response = client.send(http)) outcome.status = response->status;
  if (outcome.status != 200) outcome.is_complete = false;
  return outcome;
}

std::string fetch(const std::string& url, const std::string& path) {
  httplib::Client client(url);
  client.set_read_timeout(kTimeoutSeconds);
  const auto response = client.Get(path);
  return response && response->status == 200 ? response->body : std::string();
}

}  // namespace serving::load
