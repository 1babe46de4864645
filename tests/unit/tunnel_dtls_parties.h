// For the tests of src/tunnel/dtls*: hosts with certificates, good and bad ones, and two of them joined by mail.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "pki/issue.h"
#include "tunnel/dtls.h"

namespace banana::tunnel::testing {

using Bytes = std::vector<uint8_t>;

inline Bytes bytes_of(std::string_view text) { return {text.begin(), text.end()}; }

// Keeps what a session sends.
struct Mail final : Sink {
    std::vector<Bytes> out;
    void put(std::span<const uint8_t> record) override { out.emplace_back(record.begin(), record.end()); }
    std::vector<Bytes> take() { return std::exchange(out, {}); }
};

using ContextPtr = std::shared_ptr<const Context>;

// One cluster's hosts, and strangers. The files are gone as soon as they are read.
class Hosts {
public:
    static const Hosts& all() {
        static const Hosts hosts;
        return hosts;
    }
    // hv1, hv2; of hv2 also: foreign, expired, early, controller
    ContextPtr operator()(const std::string& name, CipherPreference preference = CipherPreference::aes) const {
        return contexts_.at({name, preference});
    }

private:
    struct Folder {
        std::filesystem::path path = std::filesystem::temp_directory_path() / ("banana-dtls-" + random_hex(8));
        Folder() { std::filesystem::create_directory(path); }
        ~Folder() { std::filesystem::remove_all(path); }
    };

    Hosts() {
        const Folder folder;
        dir_ = folder.path;
        for (const char* authority : {"pki", "other"}) {
            pki::InitOptions options;
            options.dir = dir_ / authority;
            REQUIRE(pki::init(options).ok());
        }
        constexpr int64_t day = 86400;
        const int64_t now = ::time(nullptr);
        add("hv1", "pki", "hv1", pki::role_tunnel);
        add("hv2", "pki", "hv2", pki::role_tunnel);
        add("foreign", "other", "hv2", pki::role_tunnel);
        add("controller", "pki", "hv2", pki::role_controller);
        add("expired", "pki", "hv2", pki::role_tunnel, now - 9 * day, now - day);
        add("early", "pki", "hv2", pki::role_tunnel, now + day, now + 9 * day);
    }
    void add(const std::string& name, const char* authority, const char* host, const char* role,
             std::optional<int64_t> not_before = {}, std::optional<int64_t> not_after = {}) {
        pki::IssueOptions options;
        options.host = host;
        options.role = role;
        options.not_before = not_before;
        options.not_after = not_after;
        options.dir = dir_ / authority;
        options.out = dir_ / name;
        std::filesystem::create_directory(dir_ / name);
        const auto issued = pki::issue(options);
        REQUIRE_MESSAGE(issued.ok(), (issued ? "" : issued.error().message()));
        const bool fits = name == "hv1" || name == "hv2";
        // Each trusts the first cluster's CA.
        const Credentials files{dir_ / "pki" / "ca.crt", issued->certificate, issued->key};
        for (const auto preference : {CipherPreference::aes, CipherPreference::chacha}) {
            auto loaded = Context::load(files, preference, fits ? OwnCertificate::must_fit : OwnCertificate::as_it_is);
            REQUIRE_MESSAGE(loaded.ok(), (loaded ? "" : loaded.error().message()));
            contexts_[{name, preference}] = *loaded;
            const auto strict = Context::load(files, preference);
            CHECK(strict.ok() == fits);
            if (!strict) CHECK(strict.error().message().find("own certificate " + files.certificate) == 0);
        }
    }

    std::filesystem::path dir_;
    std::map<std::pair<std::string, CipherPreference>, ContextPtr> contexts_;
};

// hv1 dials hv2, over mail that is always delivered.
struct Pair {
    static constexpr size_t datagram = 1200;
    Mail from_dialler, from_listener;
    std::unique_ptr<Session> dialler, listened;
    Listener listener;
    Bytes sender = bytes_of("192.0.2.1:4790/0/7");

    explicit Pair(const ContextPtr& dials, const ContextPtr& listens, const std::string& expected = "hv2")
        : listener(listens, datagram) {
        auto made = Session::dial(dials, expected, datagram, from_dialler);
        REQUIRE(made.ok());
        dialler = std::move(*made);
    }
    Pair() : Pair(Hosts::all()("hv1"), Hosts::all()("hv2")) {}

    void deliver(const Bytes& datagram_bytes, bool to_listener) {
        if (!to_listener)
            dialler->on_handshake(datagram_bytes, from_dialler);
        else if (listened)
            listened->on_handshake(datagram_bytes, from_listener);
        else
            listened = listener.on_hello(datagram_bytes, sender, from_listener);
    }
    // Until nobody has anything to say.
    void handshake() {
        for (int round = 0; !from_dialler.out.empty() || !from_listener.out.empty(); ++round) {
            REQUIRE(round < 20);
            for (const auto& each : from_dialler.take()) deliver(each, true);
            for (const auto& each : from_listener.take()) deliver(each, false);
        }
    }
    void connect() {
        handshake();
        REQUIRE(dialler->state() == Session::State::up);
        REQUIRE(listened);
        REQUIRE(listened->state() == Session::State::up);
    }
};

struct Opened {
    Bytes plain;
    Refusal refusal;
    bool operator==(const Opened&) const = default;
};

inline Opened open(Session& session, std::span<const uint8_t> record, Sink& sink) {
    Bytes copy(record.begin(), record.end());
    Opened out{{}, Refusal::none};
    const auto plain = session.open(copy, out.refusal, sink);
    out.plain.assign(plain.begin(), plain.end());
    return out;
}

// Nothing: it does not seal.
inline std::optional<Bytes> seal(Session& session, const Bytes& plain) {
    Bytes record(session.overhead() + plain.size());
    std::copy(plain.begin(), plain.end(), record.begin() + static_cast<ptrdiff_t>(session.head()));
    return session.seal(record) ? std::optional(record) : std::nullopt;
}

inline Bytes sealed(Session& session, const Bytes& plain) {
    const auto record = seal(session, plain);
    REQUIRE(record);
    return *record;
}

}  // namespace banana::tunnel::testing
