// What can be read of a DTLS 1.2 record without its key, and which record numbers came already.
//
// Concepts: the 13 bytes before a record's payload are clear text, and a sealed record's tag covers them. So why a
// record is not opened can be told, and a replay costs no decryption. The window is moved only by records that were
// opened. Threading: values. Errors: none; a header that is no record's is absent.
// Source: RFC 6347, sections 4.1 (header) and 4.1.2.6 (window).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "tunnel/octets.h"

namespace banana::tunnel {

enum class ContentType : uint8_t { change_cipher = 20, alert = 21, handshake = 22, application = 23 };

struct RecordHeader {
    static constexpr size_t bytes = 13;
    ContentType type;
    uint16_t epoch;
    uint64_t number;      // 48 bits
    size_t record_bytes;  // with this header; no more than there are
};

// Nothing: not a record of DTLS 1.0 (which first ClientHellos bear) or 1.2, or cut short.
inline std::optional<RecordHeader> read_record(std::span<const uint8_t> from) {
    constexpr uint8_t major = 0xfe, dtls_1_0 = 0xff, dtls_1_2 = 0xfd;
    if (from.size() < RecordHeader::bytes || from[1] != major || (from[2] != dtls_1_2 && from[2] != dtls_1_0))
        return {};
    if (from[0] < uint8_t(ContentType::change_cipher) || from[0] > uint8_t(ContentType::application)) return {};
    uint64_t number = 0;
    for (size_t i = 5; i < 11; ++i) number = number << 8 | from[i];
    const size_t whole = RecordHeader::bytes + (size_t{from[11]} << 8 | from[12]);
    if (whole > from.size()) return {};
    return RecordHeader{ContentType{from[0]}, static_cast<uint16_t>(from[3] << 8 | from[4]), number, whole};
}

// Of a DTLS 1.2 record that is all of `record` and carries frames.
inline void write_record_header(std::span<uint8_t> record, uint16_t epoch, uint64_t number) {
    record[0] = static_cast<uint8_t>(ContentType::application);
    put16(&record[1], 0xfefd);
    put16(&record[3], epoch);
    put16(&record[5], static_cast<uint16_t>(number >> 32));
    put32(&record[7], static_cast<uint32_t>(number));
    put16(&record[11], static_cast<uint16_t>(record.size() - RecordHeader::bytes));
}

class ReplayWindow {
public:
    static constexpr uint64_t width = 64;
    enum class Place : uint8_t { fresh, replayed, too_old };

    Place place(uint64_t number) const {
        if (number > highest_) return Place::fresh;
        const uint64_t behind = highest_ - number;
        if (behind >= width) return Place::too_old;
        return (seen_ >> behind & 1) != 0 ? Place::replayed : Place::fresh;
    }
    void mark(uint64_t number) {  // one that is fresh
        if (number > highest_) {
            const uint64_t ahead = number - highest_;
            seen_ = ahead < width ? seen_ << ahead : 0;
            highest_ = number;
        }
        seen_ |= uint64_t{1} << (highest_ - number);
    }

private:
    uint64_t highest_ = 0;
    uint64_t seen_ = 0;  // bit n: highest_ - n came
};

}  // namespace banana::tunnel
