#include "cli/table.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "base/bytes.h"

namespace banana::cli {

namespace {

constexpr std::string_view gap = "  ";

bool is_number(const std::string& text) {
    const bool digits =
        std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || c == '.'; });
    return digits && !text.empty() && std::count(text.begin(), text.end(), '.') <= 1;
}

std::string padded(const std::string& text, size_t width, bool right, bool last) {
    const std::string blanks(width - text.size(), ' ');
    if (right) return blanks + text;
    return last ? text : text + blanks;
}

}  // namespace

std::string safe(std::string_view text) {
    std::string out;
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\\', at), text.size());
        const auto part = text.substr(at, end - at);
        out += printable(part, part.size() * 4 + 1);
        if (end < text.size()) out += '\\';
        at = end + 1;
    }
    return out;
}

std::string cell(const Json& value) {
    if (value.is_bool()) return value.as_bool() ? "yes" : "no";
    if (value.is_string()) return value.as_string().empty() ? "-" : safe(value.as_string());
    if (value.is_null() || ((value.is_array() || value.is_object()) && value.size() == 0)) return "-";
    if (!value.is_array()) return safe(value.dump());
    std::string out;
    for (size_t i = 0; i < value.size(); ++i) out += (i ? "," : "") + cell(value.at(i));
    return out;
}

Json at_path(const Json& object, std::string_view path) {
    Json value = object;
    while (true) {
        const size_t dot = path.find('.');
        value = value.get(std::string(path.substr(0, dot)).c_str());
        if (dot == std::string_view::npos) return value;
        path.remove_prefix(dot + 1);
    }
}

void Table::add(std::vector<std::string> row) {
    row.resize(headings_.size());
    rows_.push_back(std::move(row));
}

void Table::print(std::ostream& out, std::string_view indent) const {
    const size_t count = headings_.size();
    std::vector<size_t> width(count);
    std::vector<char> right(count, !rows_.empty());
    for (size_t i = 0; i < count; ++i) {
        width[i] = headings_[i].size();
        bool numbers = false;
        for (const auto& row : rows_) {
            width[i] = std::max(width[i], row[i].size());
            numbers = numbers || is_number(row[i]);
            if (!is_number(row[i]) && row[i] != "-") right[i] = false;
        }
        right[i] = right[i] && numbers;
    }
    const auto line = [&](const std::vector<std::string>& row) {
        std::string text(indent);
        for (size_t i = 0; i < count; ++i)
            text += (i ? std::string(gap) : "") + padded(row[i], width[i], right[i] != 0, i + 1 == count);
        text.erase(text.find_last_not_of(' ') + 1);
        out << text << '\n';
    };
    if (std::any_of(headings_.begin(), headings_.end(), [](const auto& h) { return !h.empty(); })) line(headings_);
    for (const auto& row : rows_) line(row);
}

Table table_of(const Json& array, const std::vector<Column>& columns) {
    std::vector<std::string> headings;
    for (const auto& column : columns) headings.emplace_back(column.heading);
    Table table(std::move(headings));
    for (size_t i = 0; i < array.size(); ++i) {
        std::vector<std::string> row;
        for (const auto& column : columns) row.push_back(cell(at_path(array.at(i), column.path)));
        table.add(std::move(row));
    }
    return table;
}

void print_fields(std::ostream& out, const Json& object, const std::vector<Column>& fields) {
    size_t width = 0;
    for (const auto& field : fields) width = std::max(width, std::string_view(field.heading).size());
    for (const auto& field : fields) {
        const Json value = at_path(object, field.path);
        if (!value.is_null()) out << fmt::format("{:<{}}{}{}\n", field.heading, width, gap, cell(value));
    }
}

std::string duration_text(int64_t seconds) {
    constexpr int64_t minute = 60, hour = 60 * minute, day = 24 * hour;
    if (seconds < minute) return fmt::format("{}s", seconds);
    if (seconds < hour) return fmt::format("{}m {}s", seconds / minute, seconds % minute);
    if (seconds < day) return fmt::format("{}h {}m", seconds / hour, seconds % hour / minute);
    return fmt::format("{}d {}h", seconds / day, seconds % day / hour);
}

std::string bytes_text(int64_t bytes) {
    constexpr std::array<const char*, 5> units{"KiB", "MiB", "GiB", "TiB", "PiB"};
    if (bytes < 1024) return fmt::format("{} B", bytes);
    double value = static_cast<double>(bytes);
    size_t unit = 0;
    for (value /= 1024; value >= 1024 && unit + 1 < units.size(); value /= 1024) ++unit;
    return fmt::format("{:.1f} {}", value, units[unit]);
}

}  // namespace banana::cli
