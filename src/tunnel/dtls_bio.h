// The BIO between OpenSSL and a session's datagrams: no socket, no queue.
//
// Concepts: what is to be read is one datagram, by pointer, offered before a call into OpenSSL and gone with the first
// read; what OpenSSL writes goes to the Sink of that call. Threading: a session's thread. Errors: a read of nothing is
// "retry", as on a socket that would block.
#pragma once

#include <openssl/bio.h>

#include <cstdint>
#include <span>

#include "tunnel/dtls.h"

namespace banana::tunnel {

struct Link {
    std::span<const uint8_t> in;
    Sink* sink = nullptr;  // null: what is written is lost, and not counted
    bool twice = false;    // each datagram; OpenSSL drops what comes again
    uint64_t written = 0;  // datagrams
};

BIO* make_link_bio(Link& link);  // nullptr without memory; `link` must outlive it

}  // namespace banana::tunnel
