// Output for people: tables and lists of fields, aligned, with nothing cut.
//
// Concepts: a cell is any Json value as text: "-" for what is absent or empty, "yes"/"no", members of a list joined by
// commas. A column of numbers alone is aligned to the right. Text from guests, peers and files is escaped, so that no
// terminal sees a control byte. Threading: values. Errors: none.
#pragma once

#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace banana::cli {

// printable(), uncut; but a backslash stays: the daemon has escaped what it tells of others once, and a name must be
// shown as it is to be typed.
std::string safe(std::string_view text);
std::string cell(const Json& value);
Json at_path(const Json& object, std::string_view path);  // "info.version"; null when absent

class Table {
public:
    explicit Table(std::vector<std::string> headings) : headings_(std::move(headings)) {}
    void add(std::vector<std::string> row);
    bool empty() const { return rows_.empty(); }
    // Each line begins with `indent`; no headings when all are empty.
    void print(std::ostream& out, std::string_view indent = "") const;

private:
    std::vector<std::string> headings_;
    std::vector<std::vector<std::string>> rows_;
};

struct Column {
    const char* heading;
    const char* path;  // of the member, in each element
};

Table table_of(const Json& array, const std::vector<Column>& columns);
// "LABEL  value" lines of those members that are there.
void print_fields(std::ostream& out, const Json& object, const std::vector<Column>& fields);

std::string duration_text(int64_t seconds);  // "45s", "3m 10s", "2h 5m", "3d 4h"
std::string bytes_text(int64_t bytes);       // "512 B", "1.5 MiB"

}  // namespace banana::cli
