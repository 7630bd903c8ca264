// Looks among the process's descriptors for the socket with a request's two addresses.
#include "http/connection.h"

#include <netdb.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <string>

namespace serving {
namespace {

using NameOf = int (*)(int, sockaddr*, socklen_t*) noexcept;

// Whether one end of a socket, by getpeername or getsockname, is this address.
bool has_address(int socket, NameOf name_of, const std::string& address, int port) {
  sockaddr_storage name{};
  socklen_t length = sizeof name;
  auto* const end = reinterpret_cast<sockaddr*>(&name);
  if (name_of(socket, end, &length) != 0) return false;
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> service{};
  if (getnameinfo(end, length, host.data(), host.size(), service.data(), service.size(),
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return false;
  }
  return std::to_string(port) == service.data() && address == host.data();
}

}  // namespace

Connection::Connection(const httplib::Request& request) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", error)) {
    const std::string name = entry.path().filename();
    int socket = -1;
    std::from_chars(name.data(), name.data() + name.size(), socket);
    if (has_address(socket, getpeername, request.remote_addr, request.remote_port) &&
        has_address(socket, getsockname, request.local_addr, request.local_port)) {
      socket_ = socket;
      return;
    }
  }
}

bool Connection::is_open() const noexcept {
  if (socket_ < 0) return true;
  char next = 0;
  const ssize_t received = recv(socket_, &next, 1, MSG_PEEK | MSG_DONTWAIT);
  return received > 0 || (received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR));
}

}  // namespace serving
