// A progress bar on stderr, on a terminal only.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace pagedkv::tool {

/// Draws at most ten times a second and wipes its line when it ends, so that it can surround anything.
class Progress {
 public:
  /// With total 0 the end is unknown, and the bar shows counts alone.
  Progress(std::string label, std::uint64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(std::uint64_t done);

 private:
  void draw(std::uint64_t done);

  std::string label_;
  std::uint64_t total_;
  bool on_terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point begun_, last_drawn_;
};

}  // namespace pagedkv::tool
