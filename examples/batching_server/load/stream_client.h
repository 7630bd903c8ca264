// One streamed completion as a client sees it: when its tokens came.
#pragma once

#include <string>

#include "load/trace.h"

namespace serving::load {

struct Outcome {
  int status = 0;                        ///< HTTP; 0 = no connection or cut off.
  bool is_complete = false;              ///< "[DONE]" was read and every choice had its finish reason.
  double sent = 0, first = 0, last = 0;  ///< Seconds on the steady clock; 0 = never.
  std::uint32_t tokens = 0;              ///< As the server counted them.
};

double steady_seconds();

/// Sends the request and reads its events to the end. Greedy, to its full length.
Outcome stream_completion(const std::string& url, const std::string& model, const TraceRequest& request);

/// The body of GET `path`; empty if there was no answer with status 200.
std::string fetch(const std::string& url, const std::string& path);

}  // namespace serving::load
