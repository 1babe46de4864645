#include <doctest/doctest.h>

#include <cerrno>

#include "base/result.h"

using namespace banana;

namespace {
Result<int> half(int n) {
    if (n % 2 != 0) return Error(Errc::invalid, "halve 3: it is odd");
    return n / 2;
}
Result<int> quarter(int n) {
    TRY_SET(const int once, half(n));
    return half(once);
}
}  // namespace

TEST_CASE("TRY_SET passes values on and errors out") {
    CHECK(*quarter(8) == 2);
    CHECK_FALSE(quarter(3).ok());
    CHECK(quarter(6).error().code() == Errc::invalid);
}

TEST_CASE("context adds the outer layer once, and keeps the code") {
    const auto r = half(3).context("quarter");
    CHECK(r.error().message() == "quarter: halve 3: it is odd");
    CHECK(r.error().code() == Errc::invalid);
}

TEST_CASE("errno keeps its meaning as a code") {
    CHECK(errno_error(EEXIST, "create vxlan bnx0").code() == Errc::exists);
    CHECK(errno_error(ENODEV, "x").code() == Errc::not_found);
    CHECK(errno_error(EPERM, "x").code() == Errc::refused);
    CHECK(errno_error(EEXIST, "create vxlan bnx0").message() == "create vxlan bnx0: File exists");
}

TEST_CASE("every code's name reads back") {
    for (auto code : {Errc::failed, Errc::invalid, Errc::not_found, Errc::exists, Errc::refused, Errc::unreachable,
                      Errc::timeout, Errc::busy, Errc::unsupported})
        CHECK(errc_from_name(errc_name(code)) == code);
}
