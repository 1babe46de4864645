#include "tunnel/dtls_bio.h"

#include <algorithm>
#include <cstring>

namespace banana::tunnel {

namespace {

Link& link_of(BIO* bio) { return *static_cast<Link*>(BIO_get_data(bio)); }

int write_datagram(BIO* bio, const char* data, int size) {
    Link& link = link_of(bio);
    BIO_clear_retry_flags(bio);
    if (link.sink == nullptr) return size;
    ++link.written;
    const std::span record(reinterpret_cast<const uint8_t*>(data), static_cast<size_t>(size));
    link.sink->put(record);
    if (link.twice) link.sink->put(record);
    return size;
}

int read_datagram(BIO* bio, char* to, int room) {
    Link& link = link_of(bio);
    BIO_clear_retry_flags(bio);
    if (link.in.empty()) {
        BIO_set_retry_read(bio);
        return -1;
    }
    const size_t size = std::min(link.in.size(), static_cast<size_t>(room));
    std::memcpy(to, link.in.data(), size);
    link.in = {};
    return static_cast<int>(size);
}

long control(BIO*, int command, long, void*) {
    switch (command) {
        case BIO_CTRL_FLUSH: return 1;
        case BIO_CTRL_DGRAM_GET_MTU_OVERHEAD: return 0;  // what is before the record is the caller's matter
        default: return 0;                               // BIO_CTRL_DGRAM_GET_PEER: there is no address here
    }
}

const BIO_METHOD* link_method() {
    static const BIO_METHOD* const method = [] {
        BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "banana datagram");
        if (made == nullptr) return made;
        BIO_meth_set_write(made, write_datagram);
        BIO_meth_set_read(made, read_datagram);
        BIO_meth_set_ctrl(made, control);
        return made;
    }();
    return method;
}

}  // namespace

BIO* make_link_bio(Link& link) {
    const BIO_METHOD* method = link_method();
    BIO* bio = method != nullptr ? BIO_new(method) : nullptr;
    if (bio == nullptr) return nullptr;
    BIO_set_data(bio, &link);
    BIO_set_init(bio, 1);
    return bio;
}

}  // namespace banana::tunnel
