#include "accounting.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>

namespace traffic {

void Account::arrive(uint64_t sequence, int64_t now_ns, int64_t sent_ns) {
    if (sequence >= kMaxSequence) return;
    if (arrivals_++ == 0) {
        first_ns_ = now_ns;
    } else if (now_ns - last_ns_ > longest_gap_ns_) {
        longest_gap_ns_ = now_ns - last_ns_;
        gap_at_ns_ = last_ns_ - first_ns_;
    }
    last_ns_ = now_ns;
    note_delay(now_ns - sent_ns);

    if (sequence >= seen_.size()) seen_.resize(std::max<uint64_t>(sequence + 1, seen_.size() * 2));
    if (seen_[sequence]) {
        duplicates_++;
        return;
    }
    seen_[sequence] = true;
    received_++;
    if (sequence < end_) reordered_++;
    end_ = std::max(end_, sequence + 1);
}

void Account::note_delay(int64_t delay_ns) {
    if (arrivals_ <= kWindow) first_least_ = std::min(first_least_, delay_ns);
    current_least_ = std::min(current_least_, delay_ns);
    if (arrivals_ % kWindow == 0) {
        previous_least_ = current_least_;
        current_least_ = kNone;
    }
}

Report Account::report(uint64_t sent) const {
    Report result;
    result.sent = sent;
    result.received = received_;
    result.lost = sent > received_ ? sent - received_ : 0;
    result.duplicates = duplicates_;
    result.reordered = reordered_;
    result.longest_gap_ns = longest_gap_ns_;
    result.gap_at_ns = gap_at_ns_;
    int64_t last_least = std::min(previous_least_, current_least_);
    if (last_least != kNone) result.clock_shift_ns = last_least - first_least_;
    for (uint64_t at = 0; at < sent && result.missing.size() < kMaxRanges;) {
        if (at < seen_.size() && seen_[at]) {
            at++;
            continue;
        }
        uint64_t end = at + 1;
        while (end < sent && (end >= seen_.size() || !seen_[end])) end++;
        result.missing.push_back({at, end});
        at = end;
    }
    return result;
}

namespace {

// The words of the line and the JSON, in one place, so that encode and decode cannot drift apart.
struct Word {
    const char* name;
    uint64_t Report::*count;
    int64_t Report::*time;
};
constexpr Word kWords[] = {
    {"sent", &Report::sent, nullptr},
    {"received", &Report::received, nullptr},
    {"lost", &Report::lost, nullptr},
    {"duplicates", &Report::duplicates, nullptr},
    {"reordered", &Report::reordered, nullptr},
    {"late_sends", &Report::late_sends, nullptr},
    {"send_errors", &Report::send_errors, nullptr},
    {"longest_late", nullptr, &Report::longest_late_ns},
    {"longest_gap", nullptr, &Report::longest_gap_ns},
    {"gap_at", nullptr, &Report::gap_at_ns},
    {"clock_shift", nullptr, &Report::clock_shift_ns},
};

std::string milliseconds(int64_t ns) {
    char text[40];
    std::snprintf(text, sizeof text, "%.3f", static_cast<double>(ns) / 1e6);
    return text;
}

}  // namespace

std::string encode(const Report& report) {
    std::ostringstream out;
    for (const Word& word : kWords) {
        out << word.name << '=';
        word.count ? out << report.*word.count : out << report.*word.time;
        out << ' ';
    }
    for (const Range& range : report.missing) out << "missing=" << range.first << '-' << range.end << ' ';
    std::string line = out.str();
    line.pop_back();
    return line;
}

Report decode(const std::string& line) {
    Report report;
    std::istringstream in(line);
    for (std::string pair; in >> pair;) {
        size_t equals = pair.find('=');
        if (equals == std::string::npos) continue;
        std::string name = pair.substr(0, equals);
        const char* value = pair.c_str() + equals + 1;
        for (const Word& word : kWords) {
            if (name != word.name) continue;
            if (word.count)
                report.*word.count = std::strtoull(value, nullptr, 10);
            else
                report.*word.time = std::strtoll(value, nullptr, 10);
        }
        if (name == "missing" && report.missing.size() < Account::kMaxRanges) {
            char* rest = nullptr;
            uint64_t first = std::strtoull(value, &rest, 10);
            if (*rest == '-') report.missing.push_back({first, std::strtoull(rest + 1, nullptr, 10)});
        }
    }
    return report;
}

std::string to_json(const Report& report) {
    std::ostringstream out;
    out << '{';
    for (const Word& word : kWords) {
        out << '"' << word.name;
        if (word.count)
            out << "\":" << report.*word.count << ',';
        else
            out << "_ms\":" << milliseconds(report.*word.time) << ',';
    }
    out << "\"missing\":[";
    const char* comma = "";
    for (const Range& range : report.missing) {
        out << comma << '[' << range.first << ',' << range.end - 1 << ']';
        comma = ",";
    }
    out << "]}";
    return out.str();
}

std::string to_text(const Report& report) {
    std::ostringstream out;
    out << "sent " << report.sent << ", received " << report.received << ", lost " << report.lost << ", duplicates "
        << report.duplicates << ", reordered " << report.reordered << ", longest gap "
        << milliseconds(report.longest_gap_ns) << " ms at " << milliseconds(report.gap_at_ns) << " ms, late sends "
        << report.late_sends << " (worst " << milliseconds(report.longest_late_ns) << " ms), clock shift "
        << milliseconds(report.clock_shift_ns) << " ms";
    if (report.send_errors) out << ", send errors " << report.send_errors;
    if (!report.missing.empty()) out << ", first missing";
    for (const Range& range : report.missing) {
        out << ' ' << range.first;
        if (range.end - range.first > 1) out << '-' << range.end - 1;
    }
    return out.str();
}

}  // namespace traffic
