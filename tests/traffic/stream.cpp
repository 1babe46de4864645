#include "stream.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace traffic {

namespace {
constexpr int64_t kLateAfter = 1'000'000;  // ns
constexpr int kBatch = 32;
constexpr int kBuffer = 65536;
constexpr int kPollMs = 100;  // how soon a receiver sees that it is to stop
}  // namespace

Sender::Sender(const sockaddr_in& to, const Flow& flow) : fd_(udp_socket(0)), to_(to), flow_(flow) {
    flow_.size = std::clamp(flow_.size, kMinSize, kMaxSize);
    if (fd_) thread_ = std::thread([this] { loop(); });
}

void Sender::stop() {
    stopping_ = true;
    if (thread_.joinable()) thread_.join();
}

Report Sender::sent() const {
    Report report;
    report.sent = sent_;
    report.late_sends = late_;
    report.longest_late_ns = longest_late_;
    report.send_errors = errors_;
    return report;
}

void Sender::loop() {
    std::string datagram(static_cast<size_t>(flow_.size - kIpUdpHeaders), 'b');
    Header header;
    header.stream = flow_.stream;
    const int64_t start = now_ns();
    for (uint64_t k = 0; !stopping_ && (flow_.count == 0 || k < flow_.count); k++) {
        int64_t now = now_ns();
        if (flow_.rate > 0) {
            int64_t due = start + static_cast<int64_t>(k * 1'000'000'000 / flow_.rate);
            if (now < due) {
                sleep_until_ns(due);
                now = now_ns();
            }
            if (now - due > kLateAfter) late_++;
            longest_late_ = std::max<int64_t>(longest_late_, now - due);
        }
        header.sequence = k;
        header.sent_ns = now;
        std::memcpy(datagram.data(), &header, sizeof header);
        // A refused datagram keeps its number and so counts as lost: asking again would close the loop.
        if (sendto(fd_.get(), datagram.data(), datagram.size(), 0, reinterpret_cast<sockaddr*>(&to_), sizeof to_) < 0)
            errors_++;
        sent_ = k + 1;
    }
    done_ = true;
}

Receiver::Receiver(uint16_t port) : fd_(udp_socket(port)) {
    if (!fd_) return;
    set_timeouts(fd_, kPollMs);
    thread_ = std::thread([this] { loop(); });
}

Receiver::~Receiver() {
    stopping_ = true;
    if (thread_.joinable()) thread_.join();
}

void Receiver::open(uint32_t stream) {
    std::lock_guard lock(mutex_);
    streams_[stream] = Account();
}

void Receiver::close(uint32_t stream) {
    std::lock_guard lock(mutex_);
    streams_.erase(stream);
}

Report Receiver::report(uint32_t stream, uint64_t sent) const {
    std::lock_guard lock(mutex_);
    auto at = streams_.find(stream);
    if (at == streams_.end()) return Account().report(sent);
    return at->second.report(sent ? sent : at->second.expected());
}

uint64_t Receiver::received(uint32_t stream) const {
    std::lock_guard lock(mutex_);
    auto at = streams_.find(stream);
    return at == streams_.end() ? 0 : at->second.received();
}

void Receiver::loop() {
    std::vector<char> buffers(static_cast<size_t>(kBatch) * kBuffer);
    mmsghdr messages[kBatch] = {};
    iovec vectors[kBatch] = {};
    for (int i = 0; i < kBatch; i++) {
        vectors[i] = {buffers.data() + static_cast<ptrdiff_t>(i) * kBuffer, kBuffer};
        messages[i].msg_hdr.msg_iov = &vectors[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    while (!stopping_) {
        int got = recvmmsg(fd_.get(), messages, kBatch, MSG_WAITFORONE, nullptr);
        if (got <= 0) continue;  // the time-out, or an ICMP error of an earlier datagram
        int64_t now = now_ns();
        std::lock_guard lock(mutex_);
        for (int i = 0; i < got; i++) take(static_cast<char*>(vectors[i].iov_base), messages[i].msg_len, now);
    }
}

void Receiver::take(const char* data, size_t length, int64_t now) {
    Header header;
    if (length < sizeof header) return;
    std::memcpy(&header, data, sizeof header);
    if (header.magic != Header::kMagic) return;
    auto at = streams_.find(header.stream);
    if (at != streams_.end()) at->second.arrive(header.sequence, now, header.sent_ns);
}

}  // namespace traffic
