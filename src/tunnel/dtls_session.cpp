// A session's life:
//
//      dial(), or a        handshake done,          records used up,
//      hello with cookie   certificate judged       close(), close_notify, alert, fail()
//   ------> handshaking ----------------------> up --------------------------------------> closed
//                |                                                                            ^
//                +---- alert, refused certificate, 10 s, close(), fail() ---------------------+
//
// handshaking: nothing is sealed or opened. up: the peer is known. closed: nothing is sent any more.
//
// Why nothing that comes by datagram can end a session that is up, unless its peer sealed it: records with frames never
// reach OpenSSL's DTLS (dtls_seal.h); others do only when they are of its encrypted epoch and have room for a tag, and
// it drops what does not authenticate (but for one that is too short, which ends the association: up to 3.0.19 at
// least). During the handshake records are clear text, and who can forge a datagram to the session can end that
// attempt; it is begun again.
//
// OpenSSL's retransmission timer runs by the wall clock. Our own due times and the deadline are monotonic: a step of
// the clock may delay or hasten one retransmission, or cost the attempt its ten seconds, and no more than that.
#include <fmt/core.h>

#include <algorithm>

#include "base/clock.h"
#include "tunnel/dtls_internal.h"

namespace banana::tunnel {

namespace {

using State = Session::State;

constexpr uint16_t sealed_epoch = 1;  // OpenSSL's own: epoch 0 is the handshake's, frames_epoch ours
constexpr unsigned early_max = 8;     // of those that OpenSSL keeps until the key is known, each in 16 KB
constexpr size_t plain_max = SSL3_RT_MAX_PLAIN_LENGTH;
constexpr size_t sealed_min = RecordHeader::bytes + RecordCipher::tag_bytes;

// Microseconds; `previous` 0: a flight's first.
unsigned on_timer_length(SSL*, unsigned previous) {
    constexpr auto first = static_cast<unsigned>(handshake_first_retry_ns / 1000);
    constexpr auto most = static_cast<unsigned>(handshake_retry_max_ns / 1000);
    return previous == 0 ? first : std::min(previous * 2, most);
}

// When the attempt is given up.
int64_t handshake_end(const Association& a) {
    const int64_t deadline = a.started + handshake_deadline_ns;
    return a.answered == 0 ? deadline : std::min(deadline, a.answered + handshake_silence_ns);
}

void read_timer(Association& a) {
    timeval left{};
    a.timer = handshake_end(a);
    if (DTLSv1_get_timeout(a.ssl.get(), &left) == 1)
        a.timer = std::min(a.timer, monotonic_ns() + left.tv_sec * 1'000'000'000 + left.tv_usec * 1'000);
}

// The handshake is done: who is it?
Status admit(Association& a) {
    const X509* certificate = SSL_get0_peer_certificate(a.ssl.get());
    if (certificate == nullptr || SSL_get_verify_result(a.ssl.get()) != X509_V_OK)
        return Error(Errc::refused, "no verified certificate was shown");
    TRY_SET(const pki::CertInfo info, pki::describe(certificate));
    TRY(judge(info, a.expected));
    a.records = record_cipher(static_cast<uint32_t>(SSL_CIPHER_get_id(SSL_get_current_cipher(a.ssl.get()))));
    if (a.records == nullptr) return Error(Errc::refused, "a cipher that was not offered");
    TRY_SET(a.keys, RecordKeys::of(a.ssl.get(), *a.records, a.dialled));
    a.peer = info.host;
    return {};
}

// Feeds one record, in the clear or not, to the handshake.
void feed_handshake(Association& a, std::span<const uint8_t> record, const RecordHeader& header) {
    if (header.type == ContentType::application || header.epoch > sealed_epoch) return;
    if (header.epoch == sealed_epoch && (record.size() < sealed_min || ++a.early > early_max)) return;
    a.heard = true;
    a.link.in = record;
    const uint64_t written = a.link.written;
    advance(a);
    a.link.in = {};
    if (a.link.written == written || a.state != State::handshaking) return;
    a.answered = monotonic_ns();
    read_timer(a);
}

// Feeds an encrypted record that is no data to a session that is up: an alert, or a straggler of its handshake.
// Returns whether anything came of it: then it was authentic.
bool feed_other(Association& a, std::span<const uint8_t> record) {
    uint8_t nothing[1];
    const uint64_t written = a.link.written;
    a.alert = -1;
    a.link.in = record;
    a.link.twice = true;  // as on_timer()
    const int got = SSL_read(a.ssl.get(), nothing, sizeof nothing);
    a.link.twice = false;
    a.link.in = {};
    const bool closed = (SSL_get_shutdown(a.ssl.get()) & SSL_RECEIVED_SHUTDOWN) != 0;
    const unsigned long reason = ERR_peek_error();
    if (closed && a.alert < 0)
        set_state(a, State::closed, "closed by the other end");
    else if (closed || (got <= 0 && !SSL_want_read(a.ssl.get())))
        set_state(a, State::closed, failure_text(a, reason));
    ERR_clear_error();
    return closed || a.alert >= 0 || a.link.written != written;
}

}  // namespace

void set_state(Association& a, State to, const std::string& why) {
    if (a.state == State::closed || a.state == to) return;  // closed is the end, with the first reason
    a.state = to;
    a.timer = 0;
    a.why = why;
}

Result<std::unique_ptr<Association>> make_association(std::shared_ptr<const Context> context, size_t datagram_bytes) {
    ERR_clear_error();
    auto a = std::make_unique<Association>();
    a->context = std::move(context);
    a->ssl.reset(SSL_new(a->context->impl().ssl.get()));
    BIO* bio = a->ssl ? make_link_bio(a->link) : nullptr;
    if (bio == nullptr) return Error(fmt::format("DTLS session: {}", pki::openssl_reason()));
    SSL_set_bio(a->ssl.get(), bio, bio);
    SSL_set_app_data(a->ssl.get(), a.get());
    DTLS_set_timer_cb(a->ssl.get(), on_timer_length);
    if (DTLS_set_link_mtu(a->ssl.get(), static_cast<long>(datagram_bytes)) != 1) {
        ERR_clear_error();
        return Error(Errc::invalid, fmt::format("DTLS session: {} bytes of handshake per datagram; at least {}",
                                                datagram_bytes, handshake_datagram_min));
    }
    a->started = monotonic_ns();
    return a;
}

void advance(Association& a) {
    if (a.state != State::handshaking) return;
    ERR_clear_error();
    const int done = SSL_do_handshake(a.ssl.get());
    if (done != 1 && SSL_get_error(a.ssl.get(), done) == SSL_ERROR_WANT_READ) return read_timer(a);
    if (done != 1) {
        set_state(a, State::closed, failure_text(a, ERR_peek_error()));
    } else if (const Status admitted = admit(a); admitted) {
        set_state(a, State::up, "");
    } else {
        SSL_shutdown(a.ssl.get());
        set_state(a, State::closed, admitted.error().message());
    }
    ERR_clear_error();
}

Session::Session(std::unique_ptr<Association> association) : association_(std::move(association)) {}
Session::~Session() = default;

Result<std::unique_ptr<Session>> Session::dial(std::shared_ptr<const Context> context, const std::string& expected_peer,
                                               size_t datagram_bytes, Sink& sink) {
    if (auto named = pki::check_host_name(expected_peer); !named) return named.error().context("DTLS session");
    TRY_SET(auto a, make_association(std::move(context), datagram_bytes));
    a->dialled = true;
    a->expected = expected_peer;
    a->link.sink = &sink;
    SSL_set_connect_state(a->ssl.get());
    advance(*a);
    if (a->state == State::closed) return Error(fmt::format("DTLS session to {}: {}", expected_peer, a->why));
    return std::unique_ptr<Session>(new Session(std::move(a)));
}

void Session::on_handshake(std::span<const uint8_t> records, Sink& sink) {
    Association& a = *association_;
    a.link.sink = &sink;
    while (a.state != State::closed) {
        const auto header = read_record(records);
        if (!header) return;
        const auto record = records.first(header->record_bytes);
        records = records.subspan(header->record_bytes);
        if (a.state == State::handshaking) {
            feed_handshake(a, record, *header);
        } else if (!a.dialled && header->epoch == sealed_epoch && header->type == ContentType::handshake &&
                   record.size() >= a.records->overhead()) {
            // The listener's end spoke last. A Finished that comes again says that its own was lost: OpenSSL repeats
            // it.
            feed_other(a, record);
        }
    }
}

std::span<uint8_t> Session::open(std::span<uint8_t> record, Refusal& refusal, Sink& sink) {
    Association& a = *association_;
    const auto header = read_record(record);
    refusal = Refusal::malformed;
    if (a.state != State::up || !header || header->record_bytes != record.size()) return {};
    if (header->epoch == frames_epoch && header->type == ContentType::application) [[likely]]
        return open_frames(record, header->number, refusal);
    if (header->epoch != sealed_epoch || header->type != ContentType::alert) return {};
    refusal = Refusal::forged;
    if (record.size() < a.records->overhead()) return {};  // not even room for a tag: not for OpenSSL's eyes, see above
    a.link.sink = &sink;
    if (feed_other(a, record)) refusal = Refusal::none;
    return {};
}

std::span<uint8_t> Session::open_frames(std::span<uint8_t> record, uint64_t number, Refusal& refusal) {
    Association& a = *association_;
    switch (a.window.place(number)) {
        case ReplayWindow::Place::fresh: break;
        case ReplayWindow::Place::replayed: refusal = Refusal::replayed; return {};
        case ReplayWindow::Place::too_old: refusal = Refusal::too_old; return {};
    }
    refusal = Refusal::forged;
    if (record.size() <= a.records->overhead()) return {};
    if (!a.keys.peers.open(record)) {
        ERR_clear_error();
        return {};
    }
    a.window.mark(number);
    ++a.opened;
    refusal = Refusal::none;
    return record.subspan(a.records->head(), record.size() - a.records->overhead());
}

bool Session::seal(std::span<uint8_t> record) {
    Association& a = *association_;
    if (a.state != State::up || record.size() <= a.records->overhead() ||
        record.size() > plain_max + a.records->overhead())
        return false;
    if (a.sealed >= a.sealed_max) {
        set_state(a, State::closed, "its records are used up");
        return false;
    }
    if (a.keys.own.seal(record)) [[likely]] {
        ++a.sealed;
        return true;
    }
    set_state(a, State::closed, failure_text(a, ERR_peek_error()));
    ERR_clear_error();
    return false;
}

size_t Session::head() const { return association_->records != nullptr ? association_->records->head() : 0; }
size_t Session::overhead() const { return association_->records != nullptr ? association_->records->overhead() : 0; }

int64_t Session::timer_due() const { return association_->state == State::handshaking ? association_->timer : 0; }

void Session::on_timer(Sink& sink) {
    Association& a = *association_;
    const int64_t now = monotonic_ns();
    if (a.state != State::handshaking || now < a.timer) return;
    constexpr int64_t second = 1'000'000'000;
    if (now >= a.started + handshake_deadline_ns)
        return set_state(a, State::closed,
                         fmt::format("{} within {} s", a.heard ? "handshake not finished" : "no answer",
                                     handshake_deadline_ns / second));
    if (now >= handshake_end(a))
        return set_state(a, State::closed,
                         fmt::format("the handshake was left unanswered for {} s", handshake_silence_ns / second));
    a.link.sink = &sink;
    ERR_clear_error();
    // A path that has lost one datagram may lose the next: what is repeated goes out doubled. With 30 of 100 lost, half
    // of single exchanges fail, and OpenSSL gives up after twelve.
    a.link.twice = true;
    const int repeated = DTLSv1_handle_timeout(a.ssl.get());
    a.link.twice = false;
    if (repeated < 0)
        set_state(a, State::closed, failure_text(a, ERR_peek_error()));
    else
        read_timer(a);
    ERR_clear_error();
}

void Session::close(Sink& sink) {
    Association& a = *association_;
    if (a.state == State::up) {
        a.link.sink = &sink;
        SSL_shutdown(a.ssl.get());
        ERR_clear_error();
    }
    set_state(a, State::closed, "closed by this host");
}

void Session::fail(const std::string& why) { set_state(*association_, State::closed, why); }
void Session::limit_records(uint64_t most) { association_->sealed_max = std::min(association_->sealed_max, most); }

State Session::state() const { return association_->state; }
bool Session::dialled() const { return association_->dialled; }
const std::string& Session::peer() const { return association_->peer; }
std::string Session::cipher() const { return association_->records != nullptr ? association_->records->name : ""; }
const std::string& Session::why_closed() const { return association_->why; }
uint64_t Session::records_sealed() const { return association_->sealed; }
uint64_t Session::records_opened() const { return association_->opened; }

const char* refusal_name(Refusal refusal) {
    switch (refusal) {
        case Refusal::none: return "none";
        case Refusal::malformed: return "malformed";
        case Refusal::replayed: return "replayed";
        case Refusal::too_old: return "too_old";
        case Refusal::forged: return "forged";
        case Refusal::count_: break;
    }
    return "";
}

}  // namespace banana::tunnel
