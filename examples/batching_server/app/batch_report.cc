// Looks at the engine from outside, by its snapshots; the page draws itself from one JSON object.
#include "app/batch_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string_view>

namespace serving {
namespace {

constexpr std::int32_t kFree = -1, kEvictable = -2, kShared = -3;
constexpr std::size_t kMaxLooks = 1024, kMaxMapRows = 256;

constexpr const char* kPage =
#include "batch_report.html.inc"
    ;

/// A text on one line, without a byte that is not a printable character's.
std::string one_line(std::string text) {
  for (char& c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) c = ' ';
  }
  return text;
}

std::size_t columns_of(std::string_view text) {
  return static_cast<std::size_t>(
      std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; }));
}

/// The beginning of a text in at most `columns` characters.
std::string beginning(const std::string& text, std::size_t columns) {
  std::string line = one_line(text);
  if (columns_of(line) <= columns) return line;
  while (columns_of(line) > columns - 3) line.pop_back();
  return line + "...";
}

/// The end of a text, padded to `columns` characters: prompts often begin alike.
std::string ending(const std::string& text, std::size_t columns) {
  std::string line = one_line(text);
  if (columns_of(line) > columns) {
    while (columns_of(line) > columns - 3) line.erase(0, 1);
    line.insert(0, "...");
  }
  return line + std::string(columns - std::min(columns, columns_of(line)), ' ');
}

double milliseconds_a_token(const PromptReport& prompt) {
  return prompt.output_tokens < 2
             ? 0
             : (prompt.last_token_ms - prompt.first_token_ms) / static_cast<double>(prompt.output_tokens - 1);
}

}  // namespace

BatchReport::BatchReport(Engine& engine, const pagedkv::KvCache& cache, std::string model, std::uint64_t context)
    : engine_(engine),
      cache_(cache),
      model_(std::move(model)),
      context_(context),
      start_(std::chrono::steady_clock::now()) {
  static_cast<void>(engine_.snapshot(0));  // Asks for one after the next step; there is nothing to wait for.
}

double BatchReport::now_ms() const {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start_).count();
}

void BatchReport::hear(std::size_t prompt, const Event& event) {
  PromptReport& report = prompts[prompt];
  report.cached_tokens = event.cached_tokens;
  if (event.finish != FinishReason::kNone) return;
  report.last_token_ms = now_ms();
  if (report.output_tokens++ == 0) report.first_token_ms = report.last_token_ms;
}

void BatchReport::look() {
  last_ = *engine_.snapshot(0);
  if (steps_seen_++ % stride_ != 0) return;
  if (looks_.size() == kMaxLooks) {  // Keep every second one.
    for (std::size_t i = 0; 2 * i < looks_.size(); ++i) looks_[i] = std::move(looks_[2 * i]);
    looks_.resize(kMaxLooks / 2);
    stride_ *= 2;
  }
  looks_.push_back(look_at(last_));
}

BatchReport::Look BatchReport::look_at(const PoolSnapshot& snapshot) const {
  const pagedkv::PoolStats& pool = snapshot.stats.cache.pool;
  Look look{.ms = now_ms(),
            .used = pool.used_pages,
            .shared = pool.shared_pages,
            .evictable = pool.evictable_pages,
            .running = snapshot.stats.scheduler.running,
            .waiting = snapshot.stats.scheduler.waiting,
            .held = std::vector<std::uint32_t>(prompts.size()),
            .map = {}};
  std::vector<std::int32_t> owners(pool.capacity_pages, kFree);
  for (const pagedkv::PageId page : snapshot.evictable) {
    owners[static_cast<std::size_t>(pagedkv::to_index(page))] = kEvictable;
  }
  for (const PoolSnapshot::Holder& holder : snapshot.holders) {
    look.tokens += holder.num_tokens;
    const auto prompt = std::ranges::find(prompts, holder.request, &PromptReport::request);
    const auto index = static_cast<std::int32_t>(prompt - prompts.begin());
    for (const pagedkv::PageId page : holder.pages) {
      if (pagedkv::to_index(page) < 0) continue;  // Released behind a window.
      std::int32_t& owner = owners[static_cast<std::size_t>(pagedkv::to_index(page))];
      const bool is_first = owner == kFree || owner == kEvictable;
      if (is_first) ++look.held[static_cast<std::size_t>(index)];
      owner = is_first ? index : kShared;
    }
  }
  const std::size_t rows = std::min(owners.size(), kMaxMapRows);
  for (std::size_t row = 0; row < rows; ++row) look.map.push_back(owners[row * owners.size() / rows]);
  return look;
}

std::uint64_t BatchReport::most_at_once() const {
  std::uint64_t most = 0;
  for (const Look& look : looks_) most = std::max(most, look.running);
  return most;
}

std::uint64_t BatchReport::reserved_at_once() const {
  const std::uint64_t page_size = cache_.options().page_size;
  return last_.stats.cache.pool.capacity_pages / ((context_ + page_size - 1) / page_size);
}

std::uint64_t BatchReport::output_tokens() const {
  return std::accumulate(prompts.begin(), prompts.end(), std::uint64_t{0},
                         [](std::uint64_t sum, const PromptReport& prompt) { return sum + prompt.output_tokens; });
}

std::string BatchReport::table() const {
  constexpr std::size_t kPromptColumns = 36, kOutputColumns = 36;
  std::string text = fmt::format("{:<36}  {:>6}  {:>6}  {:>6}  {:>5}  {:>8}  {:>8}  {}\n", "prompt", "tokens", "cached",
                                 "output", "pages", "first ms", "ms/token", "generated");
  text += std::string(119, '-') + "\n";
  const std::uint64_t page_size = cache_.options().page_size;
  for (const PromptReport& prompt : prompts) {
    // The last token that was generated is never fed, so it has no slot.
    const std::uint64_t slots = prompt.prompt_tokens + std::max<std::uint64_t>(prompt.output_tokens, 1) - 1;
    text += fmt::format("{}  {:>6}  {:>6}  {:>6}  {:>5}  {:>8.1f}  {:>8.2f}  {}\n",
                        ending(prompt.prompt, kPromptColumns), prompt.prompt_tokens, prompt.cached_tokens,
                        prompt.output_tokens, (slots + page_size - 1) / page_size, prompt.first_token_ms,
                        milliseconds_a_token(prompt), beginning(prompt.output, kOutputColumns));
  }
  const pagedkv::PoolStats& pool = last_.stats.cache.pool;
  const double seconds = looks_.empty() ? 0 : looks_.back().ms / 1000;
  text += fmt::format("\n{} prompts, {} tokens generated in {:.2f} s ({:.0f} a second), {} steps, {} preemptions\n",
                      prompts.size(), output_tokens(), seconds,
                      seconds > 0 ? static_cast<double>(output_tokens()) / seconds : 0.0, last_.stats.steps,
                      last_.stats.scheduler.preemptions);
  text += fmt::format(
      "one pool: {} pages of {} tokens ({:.1f} KiB each), {} used at most, {} at the end\n"
      "sequences at once: {} at most; with the whole context of {} tokens reserved for each, {} would fit\n",
      pool.capacity_pages, page_size, static_cast<double>(pool.page_bytes) / 1024, pool.peak_used_pages,
      pool.used_pages, most_at_once(), context_, reserved_at_once());
  return text;
}

nlohmann::json BatchReport::to_json() const {
  const pagedkv::PoolStats& pool = last_.stats.cache.pool;
  nlohmann::json json = {{"model", model_},
                         {"kv_dtype", pagedkv::to_string(cache_.options().shape.dtype)},
                         {"page_size", cache_.options().page_size},
                         {"page_bytes", pool.page_bytes},
                         {"capacity", pool.capacity_pages},
                         {"peak_used", pool.peak_used_pages},
                         {"context", context_},
                         {"reserved_at_once", reserved_at_once()},
                         {"most_at_once", most_at_once()},
                         {"output_tokens", output_tokens()},
                         {"steps", last_.stats.steps},
                         {"preemptions", last_.stats.scheduler.preemptions},
                         {"prompts", nlohmann::json::array()},
                         {"looks", nlohmann::json::array()}};
  for (const PromptReport& prompt : prompts) {
    json["prompts"].push_back({{"prompt", prompt.prompt},
                               {"output", prompt.output},
                               {"prompt_tokens", prompt.prompt_tokens},
                               {"cached_tokens", prompt.cached_tokens},
                               {"output_tokens", prompt.output_tokens},
                               {"first_ms", prompt.first_token_ms},
                               {"last_ms", prompt.last_token_ms}});
  }
  for (const Look& look : looks_) {
    json["looks"].push_back({{"ms", look.ms},
                             {"used", look.used},
                             {"shared", look.shared},
                             {"evictable", look.evictable},
                             {"running", look.running},
                             {"waiting", look.waiting},
                             {"tokens", look.tokens},
                             {"held", look.held},
                             {"map", look.map}});
  }
  return json;
}

void BatchReport::write_html(const std::string& path) const {
  std::string json = to_json().dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  // A text with "</script>" in it must not end the data.
  for (std::size_t at = 0; (at = json.find("</", at)) != std::string::npos; at += 3) json.insert(at + 1, 1, '\\');
  std::string page = kPage;
  const std::string mark = "%REPORT%";
  page.replace(page.find(mark), mark.size(), json);
  std::ofstream file(path, std::ios::binary);
  file << page;
  if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
}

}  // namespace serving
