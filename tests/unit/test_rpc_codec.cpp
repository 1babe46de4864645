#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "base/bytes.h"
#include "peer/codec.h"

using namespace banana;
using namespace banana::rpc;

namespace {
std::vector<std::string> lines_of(LineReader& reader) {
    std::vector<std::string> out;
    while (true) {
        auto line = reader.next();
        REQUIRE(line.ok());
        if (!*line) return out;
        out.push_back(**line);
    }
}
}  // namespace

TEST_CASE("LineReader: lines come out whole, however the bytes come in") {
    const std::string text = "one\n\ntwo words\nthree\r\nfo";
    const std::vector<std::string> want{"one", "", "two words", "three\r"};
    for (size_t step = 1; step <= text.size(); ++step) {
        LineReader reader;
        std::vector<std::string> got;
        for (size_t at = 0; at < text.size(); at += step) {
            reader.feed(std::string_view(text).substr(at, step));
            for (auto& line : lines_of(reader)) got.push_back(line);
        }
        CHECK(got == want);
        CHECK(reader.mid_line());
        reader.feed("ur\n");
        CHECK(lines_of(reader) == std::vector<std::string>{"four"});
        CHECK_FALSE(reader.mid_line());
    }
}

TEST_CASE("LineReader: a line's limit holds with and without its end") {
    LineReader reader(4);
    reader.feed("1234\n12345\n");
    auto first = reader.next();
    REQUIRE(first.ok());
    CHECK(**first == "1234");
    CHECK_FALSE(reader.next().ok());
    CHECK_FALSE(reader.next().ok());  // it stays so
    LineReader open_ended(4);
    open_ended.feed("12345");
    CHECK_FALSE(open_ended.next().ok());
}

TEST_CASE("LineReader: a large line's memory is given back") {
    LineReader reader;
    reader.feed(std::string(500'000, 'x') + "\n");
    REQUIRE(lines_of(reader).size() == 1);
    CHECK(reader.held() < 100'000);
}

TEST_CASE("decode: what is malformed, and with which code") {
    struct Row {
        const char* line;
        int code;  // 0: not malformed
    };
    const Row rows[] = {
        {R"({"jsonrpc":"2.0","id":1,"method":"a"})", 0},
        {R"({"jsonrpc":"2.0","id":"x","method":"a","params":[],"unknown":{}})", 0},
        {R"({"jsonrpc":"2.0","method":"a"})", 0},
        {R"({"jsonrpc":"2.0","id":1,"result":null})", 0},
        {R"({"jsonrpc":"2.0","id":1,"error":{}})", 0},
        {"", code_parse_error},
        {"GET / HTTP/1.1", code_parse_error},
        {R"({"jsonrpc":"2.0","id":1,"method":"a"} x)", code_parse_error},
        {R"({"jsonrpc":"2.0","id":1,"method":"a")", code_parse_error},
        {"\xff\xfe\x00", code_parse_error},
        {"[]", code_invalid_request},
        {"7", code_invalid_request},
        {"null", code_invalid_request},
        {R"({"id":1,"method":"a"})", code_invalid_request},
        {R"({"jsonrpc":"1.0","id":1,"method":"a"})", code_invalid_request},
        {R"({"jsonrpc":"2.0","id":1})", code_invalid_request},
        {R"({"jsonrpc":"2.0","id":1,"method":7})", code_invalid_request},
        {R"({"jsonrpc":"2.0","id":[1],"method":"a"})", code_invalid_request},
        {R"({"jsonrpc":"2.0","id":null,"error":{"message":"too long"}})", code_invalid_request},
    };
    for (const Row& row : rows) {
        CAPTURE(row.line);
        const Message message = decode(row.line);
        const auto* bad = std::get_if<Malformed>(&message);
        CHECK((bad != nullptr ? bad->code : 0) == row.code);
    }
    CHECK(std::holds_alternative<Malformed>(decode(std::string(40, '[') + std::string(40, ']'))));
}

TEST_CASE("encode and decode are each other's inverse") {
    const Json params = Json::object({{"text", "a\nb"}, {"n", 3}});
    const std::string request = encode_request(7, "corm.show", params);
    CHECK(request.find('\n') == request.size() - 1);  // one line, whatever the text holds
    const Message message = decode(request);
    REQUIRE(std::holds_alternative<Request>(message));
    CHECK(std::get<Request>(message).id->as_int() == 7);
    CHECK(std::get<Request>(message).method == "corm.show");
    CHECK(std::get<Request>(message).params.get("text").as_string() == "a\nb");
    CHECK_FALSE(std::get<Request>(decode(encode_notification("x", {}))).id.has_value());
    const Message reply = decode(encode_result(7, "done"));
    REQUIRE(std::holds_alternative<Reply>(reply));
    CHECK(std::get<Reply>(reply).id == 7);
    CHECK(std::get<Reply>(reply).result->as_string() == "done");
}

TEST_CASE("an Error keeps its Errc and text across the wire") {
    for (const Errc code : {Errc::failed, Errc::invalid, Errc::not_found, Errc::exists, Errc::refused,
                            Errc::unreachable, Errc::timeout, Errc::busy, Errc::unsupported}) {
        const Message message = decode(encode_error(1, Error(code, "the text")));
        REQUIRE(std::holds_alternative<Reply>(message));
        const auto& result = std::get<Reply>(message).result;
        REQUIRE_FALSE(result.ok());
        CHECK(result.error().code() == code);
        CHECK(result.error().message() == "the text");
    }
    const Message foreign = decode(R"({"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"a\u001b[31m\nb"}})");
    const auto& result = std::get<Reply>(foreign).result;
    CHECK(result.error().code() == Errc::unsupported);
    CHECK(result.error().message() == "a [31m b");
}

TEST_CASE("decode takes any bytes") {
    const std::string seed = R"({"jsonrpc":"2.0","id":1,"method":"a","params":{"b":[1,2,{"c":null}]}})";
    for (int round = 0; round < 3000; ++round) {
        std::string line = seed;
        for (uint32_t n = random_u32() % 6; n > 0; --n) {
            const size_t at = random_u32() % line.size();
            switch (random_u32() % 3) {
                case 0: line[at] = static_cast<char>(random_u32()); break;
                case 1: line.erase(at, random_u32() % 8); break;
                default: line.insert(at, line.substr(random_u32() % line.size(), 5)); break;
            }
            if (line.empty()) line = "{";
        }
        const Message message = decode(line);
        if (const auto* bad = std::get_if<Malformed>(&message)) CHECK_FALSE(bad->text.empty());
    }
}
