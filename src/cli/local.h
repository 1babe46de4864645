// Commands that are more than one call, or none.
//
// Threading: blocking; one thread. Errors: those of the call, or of src/pki.
#pragma once

#include "cli/command.h"

namespace banana::cli {

Result<int> run_ping(Session& session, const Command& command, const Json& params);
Result<int> run_doctor(Session& session, const Command& command, const Json& params);
Result<int> run_migration_show(Session& session, const Command& command, const Json& params);
Result<int> run_pki_init(Session& session, const Command& command, const Json& params);
Result<int> run_pki_issue(Session& session, const Command& command, const Json& params);
Result<int> run_pki_show(Session& session, const Command& command, const Json& params);

void print_ping(const Page& page, const Json& params, const Json& result);
void print_issued(const Page& page, const Json& params, const Json& result);
void print_certificates(const Page& page, const Json& params, const Json& result);

}  // namespace banana::cli
