// "192.0.2.1:4790" and "[2001:db8::1]:4790", as the programs here are given them.
#pragma once

#include <charconv>
#include <string>

#include "base/bytes.h"
#include "tunnel/udp.h"

namespace banana::relay {

inline Result<tunnel::Endpoint> parse_endpoint(const std::string& text) {
    size_t colon = text.rfind(':');
    uint16_t port = 0;
    if (colon == std::string::npos || colon < 2) return Error(Errc::invalid, "\"" + text + "\" is not ADDRESS:PORT");
    auto [end, bad] = std::from_chars(text.data() + colon + 1, text.data() + text.size(), port);
    if (bad != std::errc{} || end != text.data() + text.size())
        return Error(Errc::invalid, "\"" + text + "\" has no port from 1 to 65535");
    bool bracket = text[0] == '[' && text[colon - 1] == ']';
    TRY_SET(IpAddress address, IpAddress::parse(bracket ? text.substr(1, colon - 2) : text.substr(0, colon)));
    return tunnel::Endpoint::of(address, port);
}

}  // namespace banana::relay
