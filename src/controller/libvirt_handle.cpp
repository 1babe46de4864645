#include "controller/libvirt_handle.h"

namespace banana::controller {

namespace {

Errc kind_of(const virError& error) {
    switch (error.code) {
        case VIR_ERR_NO_DOMAIN:
        case VIR_ERR_NO_NETWORK:
        case VIR_ERR_NO_NETWORK_PORT:
        case VIR_ERR_NO_DOMAIN_METADATA: return Errc::not_found;
        case VIR_ERR_DOM_EXIST:
        case VIR_ERR_NETWORK_EXIST: return Errc::exists;
        case VIR_ERR_AUTH_FAILED:
        case VIR_ERR_AUTH_CANCELLED:
        case VIR_ERR_AUTH_UNAVAILABLE:
        case VIR_ERR_ACCESS_DENIED:
        case VIR_ERR_OPERATION_DENIED: return Errc::refused;
        case VIR_ERR_XML_ERROR:
        case VIR_ERR_XML_DETAIL:
        case VIR_ERR_XML_INVALID_SCHEMA:
        case VIR_ERR_INVALID_ARG: return Errc::invalid;
        case VIR_ERR_OPERATION_TIMEOUT:  // "cannot acquire state change lock"
        case VIR_ERR_RESOURCE_BUSY: return Errc::busy;
        case VIR_ERR_NO_SUPPORT:
        case VIR_ERR_OPERATION_UNSUPPORTED:
        case VIR_ERR_CONFIG_UNSUPPORTED:
        case VIR_ERR_ARGUMENT_UNSUPPORTED: return Errc::unsupported;
        case VIR_ERR_NO_CONNECT:
        case VIR_ERR_INVALID_CONN:
        case VIR_ERR_RPC: return Errc::unreachable;
        default: break;
    }
    // Raised by the client's own side of the protocol: the socket is gone, or keepalive gave it up.
    return error.domain == VIR_FROM_RPC ? Errc::unreachable : Errc::failed;
}

}  // namespace

Error last_error(const std::string& what) {
    const virError* error = virGetLastError();
    if (!error || !error->message) return Error(what + ": libvirt gave no reason");
    return {kind_of(*error), what + ": " + error->message};
}

}  // namespace banana::controller
