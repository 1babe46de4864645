// Message: builds one netlink request; internal to this folder.
//
// A put that does not fit (a caller gave more than a message can hold) is remembered and makes the Request invalid.
// Attributes(): reads the attributes of a message or of a nest. Threading: values.
#pragma once

#include <linux/rtnetlink.h>
#include <netlink/attr.h>
#include <netlink/msg.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "netlink/request.h"

namespace banana::netlink {

class Message {
public:
    // Flags besides NLM_F_REQUEST, which is always set; NLM_F_ACK is set except for dumps.
    Message(std::string what, uint16_t type, uint16_t flags, size_t room = 1024);

    template <class Header>
    Message& header(const Header& header) {
        if (nlmsg_append(message_.get(), const_cast<Header*>(&header), sizeof header, NLMSG_ALIGNTO) < 0) fits_ = false;
        return *this;
    }
    Message& put(int type, const void* data, size_t size);
    template <class T>
    Message& value(int type, T value) {
        static_assert(std::is_trivially_copyable_v<T>);
        return put(type, &value, sizeof value);
    }
    Message& u8(int type, uint8_t v) { return value(type, v); }
    Message& u16(int type, uint16_t v) { return value(type, v); }
    Message& u32(int type, uint32_t v) { return value(type, v); }
    Message& text(int type, const std::string& text) { return put(type, text.c_str(), text.size() + 1); }
    Message& mac(int type, const Mac& mac) { return put(type, mac.bytes.data(), mac.bytes.size()); }
    Message& address(int type, const IpAddress& ip) { return put(type, ip.bytes.data(), ip.size()); }

    // `fill()` puts the attributes inside.
    template <class Fill>
    Message& nest(int type, Fill fill) {
        nlattr* start = nla_nest_start(message_.get(), type);
        if (!start) {
            fits_ = false;
            return *this;
        }
        fill();
        nla_nest_end(message_.get(), start);
        return *this;
    }

    // Bad input; the first one is the request's result.
    void refuse(const std::string& why);
    // Checks a device name and refuses it if the kernel would.
    Message& device_name(int type, const std::string& name);

    Request finish() &&;

private:
    std::string what_;
    MessageOwner message_;
    bool fits_ = true;
    std::optional<std::string> refused_;
};

// The attributes behind a fixed header, by type.
template <int Max>
class Attributes {
public:
    // Of a whole message whose fixed header has `header_size` bytes. `ok` is false when it is malformed.
    Attributes(const nlmsghdr& header, size_t header_size) {
        ok_ = nlmsg_parse(const_cast<nlmsghdr*>(&header), static_cast<int>(header_size), table_, Max, nullptr) >= 0;
    }
    // Of a nest; a missing one has no attributes.
    explicit Attributes(nlattr* nest) {
        if (nest) ok_ = nla_parse_nested(table_, Max, nest, nullptr) >= 0;
    }

    bool ok() const { return ok_; }
    nlattr* at(int type) const { return type <= Max ? table_[type] : nullptr; }
    bool has(int type) const { return at(type) != nullptr; }

    // The value, or the fallback when absent or shorter than T.
    template <class T>
    T get(int type, T fallback = {}) const {
        nlattr* found = at(type);
        if (!found || nla_len(found) < static_cast<int>(sizeof(T))) return fallback;
        T value;
        std::memcpy(&value, nla_data(found), sizeof value);
        return value;
    }
    std::string text(int type) const {
        nlattr* found = at(type);
        if (!found) return {};
        const char* data = static_cast<const char*>(nla_data(found));
        return {data, strnlen(data, static_cast<size_t>(nla_len(found)))};
    }
    IpAddress address(int type) const;

private:
    nlattr* table_[Max + 1] = {};
    bool ok_ = true;
};

// An attribute's bytes as an address of the family that its length tells; family 0 if neither.
IpAddress address_of(nlattr* attribute);

template <int Max>
IpAddress Attributes<Max>::address(int type) const {
    return address_of(at(type));
}

}  // namespace banana::netlink
