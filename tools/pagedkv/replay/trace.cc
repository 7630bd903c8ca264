// Parses traces line by line; whatever is wrong is reported with its line.
#include "replay/trace.h"

#include <fmt/format.h>

#include <charconv>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "replay/line_reader.h"
#include "tool.h"

namespace pagedkv::tool {
namespace {

using nlohmann::json;

constexpr std::uint64_t kMaxTokens = 1u << 30;  ///< Of one prompt or output.
constexpr std::uint64_t kMaxBlockId = 0xFFFF'FFFF;
constexpr double kMaxSeconds = 1e9;
constexpr std::uint32_t kMooncakeBlockTokens = 512;

/// What the three formats have in common: lines, and checked fields of JSON objects.
class TraceSource : public SessionSource {
 public:
  explicit TraceSource(const std::string& path) : lines_(path) {}

 protected:
  /// The next line; blank ones may stand at the end of a file only.
  bool next_line(std::string_view& line) {
    if (!lines_.next(line)) return false;
    if (!line.empty()) return true;
    while (lines_.next(line)) {
      if (!line.empty()) lines_.fail("a blank line stands before this one");
    }
    return false;
  }

  json parse_object(std::string_view line) const {
    json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (object.is_discarded()) lines_.fail("this is not JSON, or it is cut off");
    if (!object.is_object()) lines_.fail("a JSON object was expected");
    return object;
  }

  const json& field(const json& object, const char* name) const {
    const auto found = object.find(name);
    if (found == object.end()) lines_.fail(fmt::format("\"{}\" is missing", name));
    return *found;
  }

  std::uint64_t integer(const json& value, const char* name, std::uint64_t max) const {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > max) {
      lines_.fail(fmt::format("\"{}\" must be an integer from 0 to {}", name, max));
    }
    return value.get<std::uint64_t>();
  }

  std::uint32_t tokens(const json& object, const char* name) const {
    return static_cast<std::uint32_t>(integer(field(object, name), name, kMaxTokens));
  }

  double seconds(const json& object, const char* name, double unit_s) const {
    const json& value = field(object, name);
    const double time = value.is_number() ? value.get<double>() * unit_s : -1;
    if (!(time >= 0 && time <= kMaxSeconds)) {
      lines_.fail(fmt::format("\"{}\" must be a time from 0 to {:.0f} s", name, kMaxSeconds));
    }
    return time;
  }

  void require_order(double time_s) {
    if (time_s < last_s_) lines_.fail("requests must be sorted by time");
    last_s_ = time_s;
  }

  LineReader lines_;
  double last_s_ = 0;
};

void append_block(std::vector<BlockRun>& blocks, std::uint64_t id) {
  if (!blocks.empty() && blocks.back().first + blocks.back().count == id) {
    ++blocks.back().count;
  } else {
    blocks.push_back({id, 1});
  }
}

class MooncakeSource final : public TraceSource {
 public:
  using TraceSource::TraceSource;

  bool next(Session& session) override {
    std::string_view line;
    if (!next_line(line)) return false;
    const json object = parse_object(line);
    session.start_s = seconds(object, "timestamp", 1e-3);
    require_order(session.start_s);
    session.block_tokens = kMooncakeBlockTokens;
    session.turns.assign(1, Turn{});
    Turn& turn = session.turns[0];
    turn.prompt_tokens = tokens(object, "input_length");
    turn.output_tokens = tokens(object, "output_length");
    const json& ids = field(object, "hash_ids");
    const std::size_t expected = (turn.prompt_tokens + kMooncakeBlockTokens - 1) / kMooncakeBlockTokens;
    if (!ids.is_array() || ids.size() != expected) {
      lines_.fail(fmt::format("\"hash_ids\" must list {} blocks for {} tokens", expected, turn.prompt_tokens));
    }
    for (const json& id : ids) append_block(turn.blocks, integer(id, "hash_ids", kMaxBlockId));
    turn.known_tokens = turn.prompt_tokens;
    return true;
  }
};

/// Splits "a,b,c"; a field that is not there is empty.
std::string_view take_field(std::string_view& rest) {
  const std::size_t comma = rest.find(',');
  const std::string_view field = rest.substr(0, comma);
  rest = comma == std::string_view::npos ? std::string_view{} : rest.substr(comma + 1);
  return field;
}

template <class Number>
bool parse_number(std::string_view text, Number& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size();
}

/// Takes "Z", "+hh:mm" or "-hh:mm" off the end of a time; seconds east of UTC, 0 without, or NaN.
double take_utc_offset(std::string_view& time) {
  if (time.ends_with('Z')) {
    time.remove_suffix(1);
    return 0;
  }
  if (time.size() < 6 || (time[time.size() - 6] != '+' && time[time.size() - 6] != '-')) return 0;
  const std::string_view offset = time.substr(time.size() - 6);
  time.remove_suffix(6);
  unsigned hours = 0, minutes = 0;
  const bool parsed =
      offset[3] == ':' && parse_number(offset.substr(1, 2), hours) && parse_number(offset.substr(4), minutes);
  if (!parsed || hours > 23 || minutes > 59) return NAN;
  return (offset[0] == '-' ? -60.0 : 60.0) * (hours * 60 + minutes);
}

/// Seconds since 1970 of "2023-11-16 18:15:46.6805900", or of "2024-05-10 00:00:00.009930+00:00"; or NaN.
double parse_timestamp(std::string_view text) {
  unsigned month = 0, day = 0, hour = 0, minute = 0;
  int year = 0;
  double second = 0;
  const double east_s = take_utc_offset(text);
  const bool parsed = text.size() >= 19 && text[4] == '-' && text[7] == '-' && text[10] == ' ' && text[13] == ':' &&
                      text[16] == ':' && parse_number(text.substr(0, 4), year) &&
                      parse_number(text.substr(5, 2), month) && parse_number(text.substr(8, 2), day) &&
                      parse_number(text.substr(11, 2), hour) && parse_number(text.substr(14, 2), minute) &&
                      parse_number(text.substr(17), second);
  const std::chrono::year_month_day date{std::chrono::year{year}, std::chrono::month{month}, std::chrono::day{day}};
  if (!parsed || !date.ok() || hour > 23 || minute > 59 || !(second >= 0 && second < 61)) return NAN;
  const auto days = std::chrono::sys_days{date}.time_since_epoch().count();
  return static_cast<double>(days) * 86400 + hour * 3600 + minute * 60 + second - east_s;
}

class AzureSource final : public TraceSource {
 public:
  explicit AzureSource(const std::string& path) : TraceSource(path) {
    std::string_view header;
    if (!lines_.next(header) || header != "TIMESTAMP,ContextTokens,GeneratedTokens") {
      lines_.fail("the header TIMESTAMP,ContextTokens,GeneratedTokens was expected");
    }
  }

  bool next(Session& session) override {
    std::string_view line;
    if (!next_line(line)) return false;
    const double time_s = parse_timestamp(take_field(line));
    if (std::isnan(time_s)) lines_.fail("TIMESTAMP must look like 2023-11-16 18:15:46.6805900");
    if (first_s_ < 0) first_s_ = time_s;
    require_order(time_s);
    session.start_s = time_s - first_s_;
    session.turns.assign(1, Turn{});
    session.turns[0].prompt_tokens = count(take_field(line), "ContextTokens");
    session.turns[0].output_tokens = count(take_field(line), "GeneratedTokens");
    if (!line.empty()) lines_.fail("three fields were expected");
    return true;
  }

 private:
  std::uint32_t count(std::string_view text, const char* name) const {
    std::uint32_t value = 0;
    if (!parse_number(text, value) || value > kMaxTokens) {
      lines_.fail(fmt::format("{} must be an integer from 0 to {}", name, kMaxTokens));
    }
    return value;
  }

  double first_s_ = -1;
};

class AgenticSource final : public TraceSource {
 public:
  AgenticSource(const std::string& path, double session_gap_s) : TraceSource(path), session_gap_s_(session_gap_s) {}

  bool next(Session& session) override {
    std::string_view line;
    if (!next_line(line)) return false;
    const json object = parse_object(line);
    session.start_s = session_gap_s_ * static_cast<double>(num_sessions_);
    session.block_tokens = static_cast<std::uint32_t>(integer(field(object, "block"), "block", 1 << 20));
    if (session.block_tokens == 0) lines_.fail("\"block\" must not be 0");
    const json& requests = field(object, "req");
    if (!requests.is_array() || requests.empty()) lines_.fail("\"req\" must list at least one request");
    session.turns.clear();
    last_s_ = 0;
    for (const json& request : requests) session.turns.push_back(parse_turn(request, session.block_tokens));
    ++num_sessions_;
    return true;
  }

 private:
  Turn parse_turn(const json& request, std::uint32_t block_tokens) {
    if (!request.is_object()) lines_.fail("\"req\" must list objects");
    Turn turn;
    turn.offset_s = seconds(request, "t", 1);
    require_order(turn.offset_s);
    turn.prompt_tokens = tokens(request, "in");
    turn.output_tokens = tokens(request, "out");
    const json& runs = field(request, "h");
    if (!runs.is_array() || runs.size() % 2 != 0) lines_.fail("\"h\" must list pairs of start and count");
    const std::uint64_t expected = turn.prompt_tokens / block_tokens;
    std::uint64_t num_blocks = 0;
    for (std::size_t i = 0; i < runs.size(); i += 2) {
      const std::uint64_t first = integer(runs[i], "h", kMaxBlockId);
      const std::uint64_t count = integer(runs[i + 1], "h", expected);
      num_blocks += count;
      if (first + count > kMaxBlockId + 1) lines_.fail(fmt::format("\"h\" has block ids above {}", kMaxBlockId));
      // Ids are a session's own: the session number makes them unique.
      turn.blocks.push_back({num_sessions_ << 32 | first, static_cast<std::uint32_t>(count)});
    }
    if (num_blocks != expected) {
      lines_.fail(fmt::format("\"h\" must list {} blocks for {} tokens", expected, turn.prompt_tokens));
    }
    turn.known_tokens = static_cast<std::uint32_t>(expected * block_tokens);
    return turn;
  }

  double session_gap_s_;
  std::uint64_t num_sessions_ = 0;
};

}  // namespace

TraceFormat parse_trace_format(std::string_view name) {
  if (name == "mooncake") return TraceFormat::kMooncake;
  if (name == "azure") return TraceFormat::kAzure;
  if (name == "agentic") return TraceFormat::kAgentic;
  throw BadInput(fmt::format("unknown trace format {}: mooncake, azure or agentic", name));
}

std::unique_ptr<SessionSource> open_trace(const std::string& path, TraceFormat format, double session_gap_s) {
  switch (format) {
    case TraceFormat::kMooncake: return std::make_unique<MooncakeSource>(path);
    case TraceFormat::kAzure: return std::make_unique<AzureSource>(path);
    case TraceFormat::kAgentic: return std::make_unique<AgenticSource>(path, session_gap_s);
  }
  throw BadInput("unknown trace format");
}

}  // namespace pagedkv::tool
