#include <doctest/doctest.h>

#include "base/json.h"

using namespace banana;

TEST_CASE("values read back as written") {
    const auto j = Json::parse(R"({"a":1,"b":"x\u00e9","c":[true,null,{"d":-5}],"e":1.5})");
    REQUIRE(j.ok());
    CHECK(*j->integer("a") == 1);
    CHECK(j->get("b").as_string() == "x\xc3\xa9");
    CHECK(j->get("c").size() == 3);
    CHECK(j->get("c").at(2).get("d").as_int() == -5);
    CHECK(Json::parse(j->dump())->dump() == j->dump());
    CHECK(Json::parse("42")->as_int() == 42);
    CHECK(Json::parse(" null ")->is_null());
}

TEST_CASE("a member that is missing, wrong or out of range is named") {
    const auto j = *Json::parse(R"({"a":1,"s":"x"})");
    CHECK(j.string("nope").error().message() == "member 'nope' is missing");
    CHECK(j.string("a").error().message() == "member 'a' is not a string");
    CHECK(j.integer("a", 2, 5).error().message() == "member 'a' is 1; it must be 2 to 5");
    CHECK(j.object_at("s").error().code() == Errc::invalid);
}

TEST_CASE("garbage is refused") {
    for (const char* bad : {"", "{", "{\"a\":}", "[1,]", "{} x", "nul", "\"\x80\"", "{}{}", "\x01"})
        CHECK_MESSAGE(!Json::parse(bad).ok(), bad);
}

TEST_CASE("size and depth are bounded") {
    CHECK_FALSE(Json::parse("[[[[1]]]]", 100, 3).ok());
    CHECK(Json::parse("[[1]]", 100, 3).ok());
    CHECK_FALSE(Json::parse("\"" + std::string(100, 'x') + "\"", 50).ok());
    CHECK_FALSE(Json::parse(std::string(100000, '['), json_max_bytes).ok());
}
