// TunnelSink: who carries the frames of DTLS wires between their tap here and the peer's (the tunnel process, behind
// the controller's connection to it).
//
// Concepts: what is wanted is remembered and takes effect as soon as the tunnel process can be told: a sink neither
// waits for it nor fails when it is away. The engine is the only one who changes what is wanted. Threading: the
// engine's thread. Errors: none; whether a wire carries frames is the sink's to say elsewhere.
#pragma once

#include <cstdint>
#include <string>

namespace banana::wiring {

struct TunnelWire {
    uint32_t connector = 0;
    std::string device;  // the tap
    std::string peer;    // host name
    uint32_t mtu = 0;    // of the guest's frames, without Ethernet header
    bool operator==(const TunnelWire&) const = default;
};

class TunnelSink {
public:
    virtual ~TunnelSink() = default;
    virtual const TunnelWire* wanted(uint32_t connector) const = 0;
    virtual void want(const TunnelWire& wire) = 0;  // replaces the one of this connector
    virtual void unwant(uint32_t connector) = 0;    // not there: nothing to do
};

}  // namespace banana::wiring
