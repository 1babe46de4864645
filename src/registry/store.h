// Store: the host's durable records, in SQLite; documents under (kind, key), each with a version.
//
// Concepts: a record is a Json document; the kinds in use are "corm", "wire", "spike", "epoch", "tunnel_peer", "host".
// Every write is one transaction in WAL mode with synchronous=NORMAL: a crash of this process loses nothing that was
// acknowledged, a power cut may lose the last writes but never tears one (SQLite documentation, "Write-Ahead Logging";
// the kernel's links, which the records describe, are gone then as well).
// compare_and_set() is what serialises a wire: it fails when somebody else wrote in between.
// No write waits for the disk: only checkpoint() does, which is for when nothing is urgent (SQLite's own, at each
// 1000th page, would be in the middle of a hand-over). Threading: one thread. Errors: "<operation> <kind> <key>:
// <SQLite's text>"; busy when compare_and_set lost, or another daemon has the file.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "base/result.h"

struct sqlite3;
struct sqlite3_stmt;

namespace banana::registry {

struct Record {
    std::string key;
    int64_t version = 0;
    Json document;
};

class Store {
public:
    // Makes the file (0600) and its tables if they are not there. `path` ":memory:" for tests.
    static Result<Store> open(const std::string& path);

    Result<std::vector<Record>> list(const std::string& kind);
    Result<std::optional<Record>> get(const std::string& kind, const std::string& key);
    // Returns the new version (1 for a new record).
    Result<int64_t> put(const std::string& kind, const std::string& key, const Json& document);
    // Writes only if the record's version is `expected` (0: it does not exist yet).
    Result<int64_t> compare_and_set(const std::string& kind, const std::string& key, int64_t expected,
                                    const Json& document);
    Status erase(const std::string& kind, const std::string& key);  // absent: done already

    // Whose records these are: of the first host that claimed them. Records are about devices of that host's name.
    Result<std::string> claim(const std::string& host);

    // Takes what was written out of the log into the file, and begins the log anew. Waits for the disk.
    Status checkpoint();
    bool wants_checkpoint() const { return *log_pages_ >= checkpoint_pages; }

private:
    static constexpr int checkpoint_pages = 1000, checkpoint_at_last = 50'000;  // the latter: in the midst of writing

    struct Close {
        void operator()(sqlite3* db) const;
        void operator()(sqlite3_stmt* statement) const;
    };
    struct Rewind {
        void operator()(sqlite3_stmt* statement) const;
    };
    using Statement = std::unique_ptr<sqlite3_stmt, Rewind>;  // borrowed; one at a time of each text

    explicit Store(std::unique_ptr<sqlite3, Close> db) : db_(std::move(db)) {}
    Status execute(const char* sql);
    Result<Statement> prepare(std::string_view sql, const std::string& kind, const std::string& key);  // sql: a literal
    Result<int64_t> write(const char* operation, std::string_view sql, const std::string& kind, const std::string& key,
                          const Json& document, int64_t expected);
    Error cause() const;  // of the last failure
    Error not_opened(const std::string& path) const;
    Error error(const std::string& what) const;

    std::unique_ptr<sqlite3, Close> db_;
    std::unordered_map<std::string_view, std::unique_ptr<sqlite3_stmt, Close>> statements_;  // by text; parsed once
    std::unique_ptr<int> log_pages_ = std::make_unique<int>(0);  // SQLite tells; it keeps the pointer
};

}  // namespace banana::registry
