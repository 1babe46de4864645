// How results are shown to people; one file a noun. The shapes are those of the control methods (doc/manual.md).
//
// Threading: pure but for the stream. Errors: none; a member that is missing shows as "-" or not at all.
#pragma once

#include "cli/command.h"
#include "cli/table.h"

namespace banana::cli {

// A table of the array `member`, or the `name`s in it.
Printer list_of(const char* member, std::vector<Column> columns);
// A fixed text with params' values in braces: "deleted Corm {name}"; brief: the value of `brief`.
Printer done(const char* text, const char* brief);
// Fields of one object.
Printer fields_of(std::vector<Column> fields);

void print_problems(std::ostream& out, const Json& texts, const char* label);

void print_status(const Page& page, const Json& params, const Json& result);
void print_reloaded(const Page& page, const Json& params, const Json& result);
void print_doctor(const Page& page, const Json& params, const Json& result);
void print_corm(const Page& page, const Json& params, const Json& result);
void print_corm_created(const Page& page, const Json& params, const Json& result);
void print_spike_created(const Page& page, const Json& params, const Json& result);
void print_wire(const Page& page, const Json& params, const Json& result);
void print_migrations(const Page& page, const Json& params, const Json& result);
void print_peers(const Page& page, const Json& params, const Json& result);

}  // namespace banana::cli
