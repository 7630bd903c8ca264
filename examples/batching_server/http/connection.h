// Connection: whether the client of a request is still there, before anything has been written to it.
#pragma once

#include <httplib.h>

namespace serving {

/// cpp-httplib 0.11 tells a handler the addresses of its connection and not the socket, so it is found by them.
///
/// Cost: one look at each open socket of the process, a microsecond or less for each, when made.
class Connection {
 public:
  /// Valid while the request is being handled.
  explicit Connection(const httplib::Request& request);

  /// False once the client has closed its side. True if that cannot be known.
  [[nodiscard]] bool is_open() const noexcept;

 private:
  int socket_ = -1;
};

}  // namespace serving
