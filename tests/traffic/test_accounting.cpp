#include <doctest/doctest.h>

#include "accounting.h"

using traffic::Account;
using traffic::Range;
using traffic::Report;

namespace {
constexpr int64_t kMs = 1'000'000;

// Arrivals a millisecond apart, sent 100 us before.
void arrive(Account& account, uint64_t first, uint64_t end, int64_t at_ms) {
    for (uint64_t k = first; k < end; k++, at_ms++) account.arrive(k, at_ms * kMs, at_ms * kMs - kMs / 10);
}
}  // namespace

TEST_CASE("accounting: nothing arrived is all lost, one range") {
    Report report = Account().report(5);
    CHECK(report.received == 0);
    CHECK(report.lost == 5);
    CHECK(report.missing == std::vector<Range>{{0, 5}});
}

TEST_CASE("accounting: loss, duplicates and reordering are told apart") {
    Account account;
    for (uint64_t k : {0, 1, 3, 2, 3, 6}) account.arrive(k, 0, 0);
    Report report = account.report(9);
    CHECK(report.received == 5);
    CHECK(report.lost == 4);
    CHECK(report.duplicates == 1);
    CHECK(report.reordered == 1);
    CHECK(report.missing == std::vector<Range>{{4, 6}, {7, 9}});
    CHECK(account.expected() == 7);
}

TEST_CASE("accounting: a duplicate that comes late is not also reordered") {
    Account account;
    for (uint64_t k : {0, 1, 0}) account.arrive(k, 0, 0);
    CHECK(account.report(2).duplicates == 1);
    CHECK(account.report(2).reordered == 0);
}

TEST_CASE("accounting: the longest gap and its beginning") {
    Account account;
    arrive(account, 0, 100, 5000);
    arrive(account, 100, 200, 5099 + 70);
    Report report = account.report(200);
    CHECK(report.lost == 0);
    CHECK(report.longest_gap_ns == 70 * kMs);
    CHECK(report.gap_at_ns == 99 * kMs);
}

TEST_CASE("accounting: a receiver's clock that stood still shows as a shift") {
    Account account;
    int64_t stood = 40 * kMs;
    for (int64_t k = 0; k < 2000; k++) {
        int64_t now = k * kMs - (k >= 1000 ? stood : 0);
        account.arrive(static_cast<uint64_t>(k), now, k * kMs);
    }
    CHECK(account.report(2000).clock_shift_ns == -stood);
}

TEST_CASE("accounting: a number out of bounds is not counted") {
    Account account;
    account.arrive(Account::kMaxSequence, 0, 0);
    CHECK(account.report(1).received == 0);
}

TEST_CASE("accounting: the missing list is bounded") {
    Account account;
    for (uint64_t k = 0; k < 200; k += 2) account.arrive(k, 0, 0);
    CHECK(account.report(200).missing.size() == Account::kMaxRanges);
    CHECK(account.report(200).lost == 100);
}

TEST_CASE("accounting: a report survives its line") {
    Account account;
    arrive(account, 3, 90, 10);
    Report report = account.report(100);
    report.late_sends = 4;
    report.longest_late_ns = 12345;
    report.send_errors = 2;
    CHECK(traffic::decode(traffic::encode(report)) == report);
    CHECK(traffic::decode("ok nonsense=1 received=7 x").received == 7);
}
