// The life of a connection: request after request, until one side has had enough.
#include "http/bounded_server.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <exception>
#include <system_error>

namespace serving {

BoundedServer::BoundedServer(const ConnectionBounds& bounds)
    : bounds_(bounds), stop_event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (stop_event_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
}

BoundedServer::~BoundedServer() { ::close(stop_event_); }

void BoundedServer::stop_all() {
  const std::uint64_t one = 1;
  static_cast<void>(!::write(stop_event_, &one, sizeof one));
  stop();
}

bool BoundedServer::process_and_close_socket(socket_t socket) {
  {
    Connection connection(socket, stop_event_, bounds_);
    try {
      while (connection.wait_for_request()) {
        connection.begin_head();
        bool client_wants_end = false;
        const bool is_answered =
            process_request(connection, false, client_wants_end, [&](httplib::Request&) { connection.begin_body(); });
        if (!is_answered || client_wants_end || connection.must_close()) break;
      }
      connection.finish();
    } catch (const std::exception&) {
      ::shutdown(socket, SHUT_RDWR);  // No memory for a request outside its handler: only that client's call ends.
    }
  }
  ::close(socket);
  return true;
}

}  // namespace serving
