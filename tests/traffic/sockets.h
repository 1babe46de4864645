// IPv4 sockets and a monotonic clock, as thin as they can be: each returns an empty Fd (or false) with errno set.
#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <optional>
#include <string>

#include "base/fd.h"

namespace traffic {

using banana::Fd;

constexpr int kIpUdpHeaders = 28;  // IPv4 without options, and UDP: sizes are given as whole IP packets

int64_t now_ns();
void sleep_until_ns(int64_t deadline_ns);

std::optional<sockaddr_in> parse_address(const std::string& text, uint16_t port);
std::string to_string(const sockaddr_in& address);

Fd udp_socket(uint16_t port);  // bound to every address; port 0: any
uint16_t local_port(const Fd& fd);
Fd tcp_listen(uint16_t port);
Fd tcp_connect(const sockaddr_in& peer, int timeout_ms);
void set_timeouts(const Fd& fd, int milliseconds);  // of reads and writes

bool write_all(const Fd& fd, const void* data, size_t length);
// One line without its end; empty on time-out, end of file or more than 4 KiB.
std::optional<std::string> read_line(const Fd& fd);

}  // namespace traffic
