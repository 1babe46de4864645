// Owners of libvirt's objects, and libvirt's errors as ours.
//
// Concepts: libvirt counts references; an owner holds one and gives it back. A connection is closed when the last
// object made from it is gone too. Threading: free an owner only where blocking is harmless: closing a connection asks
// libvirtd. Errors: libvirt keeps one error a thread; last_error() must follow the failed call on the same thread.
#pragma once

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "base/result.h"

namespace banana::controller {

struct LibvirtFree {
    void operator()(virConnectPtr connection) const { virConnectClose(connection); }
    void operator()(virDomainPtr domain) const { virDomainFree(domain); }
    void operator()(virNetworkPtr network) const { virNetworkFree(network); }
    void operator()(virNetworkPortPtr port) const { virNetworkPortFree(port); }
    void operator()(char* text) const { ::free(text); }
};
using ConnectionOwner = std::unique_ptr<virConnect, LibvirtFree>;
using DomainOwner = std::unique_ptr<virDomain, LibvirtFree>;
using NetworkOwner = std::unique_ptr<virNetwork, LibvirtFree>;
using LibvirtText = std::unique_ptr<char, LibvirtFree>;

// A list as virConnectListAll... give it: an array that is ours, of objects that are ours.
template <class T>
class LibvirtList {
public:
    LibvirtList() = default;
    LibvirtList(const LibvirtList&) = delete;
    LibvirtList& operator=(const LibvirtList&) = delete;
    ~LibvirtList() {
        for (T* item : *this) LibvirtFree()(item);
        ::free(items_);
    }
    T*** out() { return &items_; }
    void set_size(int size) { size_ = size; }
    T** begin() const { return items_; }
    T** end() const { return items_ + size_; }

private:
    T** items_ = nullptr;
    int size_ = 0;
};

// "<what>: <libvirt's text>", and what kind of failure it was.
Error last_error(const std::string& what);

}  // namespace banana::controller
