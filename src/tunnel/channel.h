// Channel: this host and one peer in one lane. Keeps a session up, and always has at most one to send by.
//
// Concepts: either end may dial; who does first does not matter. Sessions may stand side by side; all of them receive.
// The *current* one sends: at the end that dialled it from the moment it is up, at the other end from the first record
// that opens (so that the dialler is known to be up too). A rekey is no more than that: a new session beside the old
// one. One that is superseded is closed after it has been silent for drain_ns, so both ends may disagree for a while
// which is current, and nothing is lost. When a session dies, another is current or a new one is dialled at once.
// A peer that was killed says nothing: as soon as the current session's pings stay unanswered (Live::in_doubt), one is
// dialled beside it, long before it is given up. So either end finds a peer that was started again, even if the other
// cannot dial. A peer may have sessions_max at a time, whoever dialled them; the oldest that is not current makes room.
//
//   connecting ---a session is up---> up ---the last one died or was closed---> connecting
//
// While connecting, a dial follows another, after 0.2 s at first and 5 s at most; reason() says why the last one
// failed. So it is with a rekey that fails, but the old session goes on and the channel stays up, with that reason
// until another session is current. A session that lasted for 5 s is dialled anew at once. Threading: the lane's
// thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tunnel/live.h"

namespace banana::tunnel {

struct RekeyLimits {
    int64_t age_ns = 3'600'000'000'000;
    // AES-GCM's confidentiality limit for full records is 2^38.5 bytes (RFC 8446, 5.5); records here are of some 1 400
    // B.
    uint64_t records = uint64_t{1} << 27;
};

enum class ChannelState { connecting, up };
const char* channel_state_name(ChannelState state);

// What a channel needs of its lane.
class ChannelHost {
public:
    virtual ~ChannelHost() = default;
    virtual SendBatch& batch() = 0;
    virtual std::shared_ptr<const Context> context() const = 0;
    virtual const RekeyLimits& rekey_limits() const = 0;
    virtual Place dialling_place(const Endpoint& to) = 0;  // with an index of its own; 0: there is none left
    virtual void keep(Live& live) = 0;                     // datagrams for its index go to it
    virtual void forget(Live& live) = 0;
    virtual void changed(Channel& channel) = 0;   // state, reason or current()
    virtual void switched(Channel& channel) = 0;  // to another session, which is current() now
};

class Channel {
public:
    static constexpr int64_t drain_ns = 3'000'000'000;
    static constexpr int64_t dial_first_ns = 200'000'000, dial_max_ns = 5'000'000'000;
    static constexpr int64_t rekey_pause_ns = 1'000'000'000;  // however few records are allowed
    static constexpr size_t sessions_max = 8;

    Channel(ChannelHost& host, std::string name, const Endpoint& address);
    ~Channel();

    const std::string& name() const { return name_; }
    const Endpoint& address() const { return address_; }
    bool is_at(const Endpoint& from) const;  // on its host: configured, or where its sessions are or last were
    Live* current() const { return current_; }
    ChannelState state() const { return state_; }
    const std::string& reason() const { return reason_; }
    const std::vector<std::unique_ptr<Live>>& sessions() const { return lives_; }
    uint64_t rekeys() const { return rekeys_; }
    const auto& refused() const { return refused_; }  // records, of sessions that are gone

    void adopt(std::unique_ptr<Live> accepted);  // is up, and its peer is this one
    void handshake(Live& live, std::span<const uint8_t> records, int64_t now);
    void opened(Live& live, int64_t now);  // a record of it has just been opened
    void tick(int64_t now);
    int64_t due(int64_t now) const;
    void sweep(int64_t now);  // ends what is closed, dead or long superseded
    void rekey(int64_t now);
    void dial(int64_t now, bool rekeying = false);
    void note_refusal(const std::string& why, int64_t now);  // of a session that the peer dialled
    // A frame of the peer's for a wire that is `owner`'s ("": a host that is no peer any more). Dropped, and told.
    void note_foreign(uint32_t connector, const std::string& owner, int64_t now);
    uint64_t foreign() const { return foreign_; }
    uint64_t bad_control() const;  // messages of the session that make no sense
    uint64_t moved() const;

private:
    void went_up(Live& live, int64_t now);
    void make_current(Live* live, int64_t now);
    void set(ChannelState state, const std::string& reason);
    void dial_failed(const std::string& why, int64_t now);
    void make_room(int64_t now);
    Live* dialling() const;

    ChannelHost& host_;
    std::string name_;
    Endpoint address_, last_place_;
    std::vector<std::unique_ptr<Live>> lives_;
    Live* current_ = nullptr;
    ChannelState state_ = ChannelState::connecting;
    std::string reason_;
    int64_t next_dial_ = 0, dial_pause_ = dial_first_ns;
    bool rekeying_ = false;  // the last dial was to replace a session that was well
    int64_t refusal_noted_ = 0;
    uint64_t rekeys_ = 0;
    uint64_t foreign_ = 0, bad_control_ = 0;
    int64_t foreign_logged_ = 0;
    std::array<uint64_t, static_cast<size_t>(Refusal::count_)> refused_{};
};

}  // namespace banana::tunnel
