// Streams over what Asio reads and writes. Included where a connection is made, nowhere else.
#pragma once

#include <asio/buffer.hpp>
#include <asio/error.hpp>
#include <asio/redirect_error.hpp>
#include <asio/use_awaitable.hpp>
#include <asio/write.hpp>
#include <functional>
#include <string>
#include <utility>

#include "peer/rpc.h"

namespace banana::rpc {

// `Layer` is a socket, or TLS over one. `explain` turns an error code into an Error that says what happened.
template <class Layer>
class AsioStream : public Stream {
public:
    using Explain = std::function<Error(const asio::error_code& code)>;
    AsioStream(Layer layer, Explain explain) : layer_(std::move(layer)), explain_(std::move(explain)) {}

    Layer& layer() { return layer_; }
    asio::any_io_executor executor() override { return layer_.get_executor(); }

    asio::awaitable<Result<size_t>> read_some(char* data, size_t size) override {
        asio::error_code code;
        const size_t n =
            co_await layer_.async_read_some(asio::buffer(data, size), asio::redirect_error(asio::use_awaitable, code));
        if (code == asio::error::eof) co_return size_t{0};
        if (code) co_return explain_(code);
        co_return n;
    }

    asio::awaitable<Status> write(const std::string& data) override {
        asio::error_code code;
        co_await asio::async_write(layer_, asio::buffer(data), asio::redirect_error(asio::use_awaitable, code));
        if (code) co_return explain_(code);
        co_return Status();
    }

    // On TLS, too, this ends the bytes below: a line ends a message, so a cut cannot pass for an end.
    void shutdown_send() override {
        asio::error_code ignored;
        layer_.lowest_layer().shutdown(asio::socket_base::shutdown_send, ignored);
    }

    void close() override {
        asio::error_code ignored;
        layer_.lowest_layer().close(ignored);
    }

private:
    Layer layer_;
    Explain explain_;
};

}  // namespace banana::rpc
