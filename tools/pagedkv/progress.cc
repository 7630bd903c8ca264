// Draws and wipes the progress bar.
#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "table.h"

namespace pagedkv::tool {

using Clock = std::chrono::steady_clock;

Progress::Progress(std::string label, std::uint64_t total)
    : label_(std::move(label)),
      total_(total),
      on_terminal_(isatty(STDERR_FILENO) != 0),
      begun_(Clock::now()),
      last_drawn_(begun_) {}

Progress::~Progress() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
}

void Progress::update(std::uint64_t done) {
  if (!on_terminal_) return;
  const Clock::time_point now = Clock::now();
  if (now - last_drawn_ < std::chrono::milliseconds(100)) return;
  last_drawn_ = now;
  draw(done);
}

void Progress::draw(std::uint64_t done) {
  drawn_ = true;
  const double seconds = std::chrono::duration<double>(last_drawn_ - begun_).count();
  if (total_ == 0) {
    fmt::print(stderr, "\r\x1b[K{} {} {:.0f} s", label_, with_thousands(done), seconds);
  } else {
    constexpr std::uint64_t kWidth = 30;
    const double fraction = std::min(1.0, static_cast<double>(done) / static_cast<double>(total_));
    const auto filled = static_cast<std::size_t>(fraction * kWidth);
    fmt::print(stderr, "\r\x1b[K{} [{:#<{}}{:.<{}}] {}/{} {:.0f} s", label_, "", filled, "", kWidth - filled,
               with_thousands(done), with_thousands(total_), seconds);
  }
  std::fflush(stderr);
}

}  // namespace pagedkv::tool
