// Metrics: what Prometheus scrapes.
#pragma once

#include <memory>
#include <string>

#include "engine/engine.h"

namespace serving {

/// Threads: any.
class Metrics {
 public:
  /// `engine` is borrowed; its counters are read at each scrape.
  explicit Metrics(const Engine& engine);
  ~Metrics();

  void observe_first_token(double seconds);   ///< From the call's arrival.
  void observe_output_token(double seconds);  ///< From the choice's token before it.
  void observe_request(double seconds);       ///< From arrival to the last token.
  void count_response(int status);            ///< An HTTP answer.
  void count_disconnect();                    ///< A client went before its answer was complete.

  /// Everything in Prometheus' text format.
  [[nodiscard]] std::string text() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace serving
