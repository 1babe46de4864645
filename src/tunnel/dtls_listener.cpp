// First ClientHellos: a challenge for each, a session for those that bring it back.
//
// What a stranger can make us do is bounded by what it sends: no byte is kept for it, and its answer is never larger
// than its question (a challenge is 60 bytes, the least ClientHello that OpenSSL reads to its cookie is 63). OpenSSL's
// DTLSv1_listen() does the challenge on a scratch association, which it clears each time, and which becomes the
// session's when the cookie is good.
#include <fmt/core.h>

#include <algorithm>

#include "base/clock.h"
#include "tunnel/dtls_internal.h"

namespace banana::tunnel {

namespace {

using AddressPtr = std::unique_ptr<BIO_ADDR, pki::OpensslFree<BIO_ADDR_free>>;

constexpr uint8_t client_hello = 1;
constexpr size_t message_header_bytes = 12;  // type, length (3), number (2), fragment's offset (3) and length (3)
constexpr size_t challenge_bytes = RecordHeader::bytes + message_header_bytes + 3 + Cookies::bytes;

size_t number24(std::span<const uint8_t> from) { return size_t{from[0]} << 16 | size_t{from[1]} << 8 | from[2]; }

// Whole, in one record, as every one of ours is: OpenSSL would take a first fragment, and wait for more.
bool is_client_hello(std::span<const uint8_t> records) {
    const auto header = read_record(records);
    if (!header || header->type != ContentType::handshake || header->epoch != 0 || records.size() < challenge_bytes)
        return false;
    const auto message = records.first(header->record_bytes).subspan(RecordHeader::bytes);
    if (message.size() < message_header_bytes || message[0] != client_hello) return false;
    const size_t size = message.size() - message_header_bytes;
    return number24(message.subspan(1)) == size && number24(message.subspan(6)) == 0 &&
           number24(message.subspan(9)) == size;
}

}  // namespace

int on_make_cookie(SSL* ssl, unsigned char* cookie, unsigned* size) {
    const CookieRequest* hello = association_of(ssl).hello;
    if (hello == nullptr) return 0;
    const auto made = hello->cookies->make(hello->sender, hello->now);
    std::copy(made.begin(), made.end(), cookie);
    *size = static_cast<unsigned>(made.size());
    return 1;
}

int on_check_cookie(SSL* ssl, const unsigned char* cookie, unsigned size) {
    Association& a = association_of(ssl);
    const CookieRequest* hello = a.hello;
    if (hello == nullptr || !hello->cookies->good({cookie, size}, hello->sender, hello->now)) return 0;
    if (hello->may_accept) return 1;
    hello->turned_away = true;
    a.link.sink = nullptr;  // OpenSSL challenges anew: in vain
    return 0;
}

struct Listener::Impl {
    Impl(std::shared_ptr<const Context> with, size_t bytes)
        : context(std::move(with)), datagram_bytes(std::max(bytes, handshake_datagram_min)), cookies(monotonic_ns()) {}

    std::shared_ptr<const Context> context;
    size_t datagram_bytes;
    Cookies cookies;
    AddressPtr nobody{BIO_ADDR_new()};  // where OpenSSL puts an address that our BIO does not have
    std::unique_ptr<Association> scratch;
    uint64_t challenges = 0, ignored = 0, turned_away = 0;

    bool ready() {
        if (scratch || !nobody) return scratch != nullptr;
        auto made = make_association(context, datagram_bytes);
        if (made) scratch = std::move(*made);
        return scratch != nullptr;
    }
};

Listener::Listener(std::shared_ptr<const Context> context, size_t datagram_bytes)
    : impl_(std::make_unique<Impl>(std::move(context), datagram_bytes)) {}
Listener::~Listener() = default;

std::unique_ptr<Session> Listener::on_hello(std::span<const uint8_t> records, std::span<const uint8_t> sender,
                                            Sink& sink, bool may_accept) {
    Impl& self = *impl_;
    if (!is_client_hello(records) || !self.ready()) {
        ++self.ignored;
        return nullptr;
    }
    const CookieRequest hello{&self.cookies, sender, monotonic_ns(), may_accept};
    Association& a = *self.scratch;
    a.hello = &hello;
    a.link.sink = &sink;
    a.link.in = records;
    const uint64_t written = a.link.written;
    const int listened = DTLSv1_listen(a.ssl.get(), self.nobody.get());
    a.link.in = {};
    ++(hello.turned_away ? self.turned_away : a.link.written != written ? self.challenges : self.ignored);
    if (listened == 1) {
        --self.ignored;
        a.started = hello.now;
        a.heard = true;
        advance(a);
    }
    a.hello = nullptr;
    ERR_clear_error();
    if (listened == 1) return std::unique_ptr<Session>(new Session(std::move(self.scratch)));
    if (listened < 0) self.scratch.reset();  // OpenSSL says that it is not to be used again
    return nullptr;
}

uint64_t Listener::challenges() const { return impl_->challenges; }
uint64_t Listener::ignored() const { return impl_->ignored; }
uint64_t Listener::turned_away() const { return impl_->turned_away; }

}  // namespace banana::tunnel
