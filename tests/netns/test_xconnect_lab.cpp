#include "test_xconnect_lab.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/core.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cstdlib>
#include <cstring>
#include <thread>

#include "base/clock.h"

namespace banana::testlab {

void isolated(const std::function<void()>& body) {
    bool finished = false;
    std::thread([&] {
        try {
            REQUIRE(unshare(CLONE_NEWNET | CLONE_NEWNS) == 0);
            REQUIRE(mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0);
            REQUIRE(mount("tmpfs", "/run", "tmpfs", 0, nullptr) == 0);
            REQUIRE(mount("bpf", "/sys/fs/bpf", "bpf", 0, nullptr) == 0);
            sh("ip link set lo up");
            body();
            finished = true;
        } catch (...) {  // doctest's own, of a REQUIRE; it has been reported
        }
    }).join();
    REQUIRE(finished);
}

void sh(const std::string& script) {
    int status = std::system(("set -e; " + script).c_str());
    INFO(script);
    REQUIRE((WIFEXITED(status) && WEXITSTATUS(status) == 0));
}

Ns::Ns(std::string name, bool ipv6) : name_(std::move(name)) {
    sh(fmt::format("ip netns add {0}; ip -n {0} link set lo up", name_));
    if (ipv6) return;
    enter();
    sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
}

void Ns::enter() const {
    Fd fd(open(("/run/netns/" + name_).c_str(), O_RDONLY | O_CLOEXEC));
    REQUIRE(fd.get() >= 0);
    REQUIRE(setns(fd.get(), CLONE_NEWNET) == 0);
}

uint32_t Ns::ifindex(const std::string& device) const {
    enter();
    uint32_t index = if_nametoindex(device.c_str());
    INFO(device);
    REQUIRE(index != 0);
    return index;
}

Wiretap::Wiretap(const Ns& ns, const std::string& device, uint16_t ethertype) {
    auto index = ns.ifindex(device);
    socket_ = Fd(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
    REQUIRE(socket_.get() >= 0);
    int size = 64 << 20;
    setsockopt(socket_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = htons(ethertype);
    address.sll_ifindex = static_cast<int>(index);
    REQUIRE(bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
}

bool Wiretap::send(const std::vector<uint8_t>& frame) {
    return ::send(socket_.get(), frame.data(), frame.size(), 0) == static_cast<ssize_t>(frame.size());
}

std::vector<std::vector<uint8_t>> Wiretap::receive(size_t count, int deadline_ms) {
    std::vector<std::vector<uint8_t>> frames;
    int64_t deadline = monotonic_ns() + deadline_ms * int64_t{1000000};
    while (frames.size() < count) {
        int64_t left = (deadline - monotonic_ns()) / 1000000;
        pollfd wait{socket_.get(), POLLIN, 0};
        if (left < 0 || poll(&wait, 1, static_cast<int>(left)) <= 0) break;
        std::vector<uint8_t> frame(65536);
        ssize_t size = recv(socket_.get(), frame.data(), frame.size(), 0);
        if (size < 0) break;
        frame.resize(static_cast<size_t>(size));
        frames.push_back(std::move(frame));
    }
    return frames;
}

Mac mac(const char* text) { return must(Mac::parse(text)); }

std::vector<uint8_t> frame(const Mac& to, const Mac& from, uint32_t sequence, size_t size, uint16_t ethertype) {
    std::vector<uint8_t> out(size);
    memcpy(out.data(), to.bytes.data(), ETH_ALEN);
    memcpy(out.data() + ETH_ALEN, from.bytes.data(), ETH_ALEN);
    uint16_t type = htons(ethertype);
    memcpy(out.data() + 2 * ETH_ALEN, &type, sizeof(type));
    if (size >= ETH_HLEN + sizeof(sequence)) memcpy(out.data() + ETH_HLEN, &sequence, sizeof(sequence));
    return out;
}

uint32_t sequence_of(const std::vector<uint8_t>& frame) {
    uint32_t sequence = UINT32_MAX;
    if (frame.size() >= ETH_HLEN + sizeof(sequence)) memcpy(&sequence, frame.data() + ETH_HLEN, sizeof(sequence));
    return sequence;
}

void send_paced(Wiretap& tap, const Mac& to, const Mac& from, uint32_t count, int interval_us) {
    auto bytes = frame(to, from);
    int64_t start = monotonic_ns();
    for (uint32_t i = 0; i < count; i++) {
        int64_t at = start + int64_t{i} * interval_us * 1000;
        timespec due{at / 1000000000, at % 1000000000};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, nullptr);
        memcpy(bytes.data() + ETH_HLEN, &i, sizeof(i));
        tap.send(bytes);
    }
}

Tally tally(Wiretap& tap, uint32_t count) {
    Tally out;
    std::vector<bool> seen(count);
    while (out.distinct < count) {
        auto frames = tap.receive(1, 3000);
        if (frames.empty()) break;
        uint32_t sequence = sequence_of(frames[0]);
        if (sequence >= count) continue;
        if (seen[sequence])
            out.duplicates++;
        else
            out.distinct++;
        seen[sequence] = true;
    }
    for (auto& late : tap.receive(1000, 100)) out.duplicates += sequence_of(late) < count;
    return out;
}

bool eventually(const std::function<bool()>& condition) {
    int64_t deadline = monotonic_ns() + 5000000000;
    while (!condition()) {
        if (monotonic_ns() > deadline) return false;
        poll(nullptr, 0, 2);  // between two looks, not instead of one
    }
    return true;
}

}  // namespace banana::testlab
