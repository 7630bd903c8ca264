// BoundedServer: httplib's server with connections of our own: bounded in what they read, and ended by a stop.
#pragma once

#include <httplib.h>

#include "http/connection.h"

namespace serving {

class BoundedServer final : public httplib::Server {
 public:
  /// Throws std::system_error if the system has no descriptor left.
  explicit BoundedServer(const ConnectionBounds& bounds);
  ~BoundedServer() override;
  BoundedServer(const BoundedServer&) = delete;
  BoundedServer& operator=(const BoundedServer&) = delete;

  /// Ends all connections, those that are idle at once.
  void stop_all();

 private:
  bool process_and_close_socket(socket_t socket) override;

  const ConnectionBounds bounds_;
  const int stop_event_;  // Once written, it stays readable and wakes everybody who polls it.
};

}  // namespace serving
