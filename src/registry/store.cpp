#include "registry/store.h"

#include <fmt/core.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

namespace banana::registry {

namespace {

constexpr int schema_version = 1;
constexpr const char* schema = R"(
    CREATE TABLE IF NOT EXISTS record(
        kind TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, document TEXT NOT NULL,
        PRIMARY KEY(kind, key)) WITHOUT ROWID;
)";

Status bind_text(sqlite3_stmt* statement, int index, const std::string& text) {
    if (sqlite3_bind_text(statement, index, text.data(), static_cast<int>(text.size()), SQLITE_TRANSIENT) == SQLITE_OK)
        return {};
    return Error("out of memory");
}

std::string column_text(sqlite3_stmt* statement, int index) {
    const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement, index));
    return {text != nullptr ? text : "", static_cast<size_t>(sqlite3_column_bytes(statement, index))};
}

}  // namespace

void Store::Close::operator()(sqlite3* db) const { sqlite3_close_v2(db); }
void Store::Close::operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }

void Store::Rewind::operator()(sqlite3_stmt* statement) const {
    sqlite3_reset(statement);  // its result is that of the last step, which was looked at
    sqlite3_clear_bindings(statement);
}

Error Store::cause() const {
    const bool locked = sqlite3_errcode(db_.get()) == SQLITE_BUSY;
    return {locked ? Errc::busy : Errc::failed, sqlite3_errmsg(db_.get())};
}
Error Store::error(const std::string& what) const { return cause().context(what); }

// SQLite's own words name neither who holds the lock nor what is missing.
Error Store::not_opened(const std::string& path) const {
    const std::string what = "open state " + path;
    switch (sqlite3_errcode(db_.get())) {
        case SQLITE_BUSY:
            return {Errc::busy, what + ": another bananad uses it; one alone may run on a state directory"};
        case SQLITE_CANTOPEN:
        case SQLITE_IOERR:
        case SQLITE_PERM:
        case SQLITE_READONLY:
        case SQLITE_FULL: {
            // SQLite tries again without writing, and tells of that; so the directory is asked.
            const std::string folder = std::filesystem::path(path).parent_path();
            if (::access(folder.c_str(), W_OK) != 0) return errno_error(errno, what + ": write to " + folder);
            return {cause().code(), what + ": " + cause().message() + "; bananad must be able to write this file"};
        }
        default: return cause().context(what);  // a file that is damaged, or no database
    }
}

Status Store::execute(const char* sql) {
    if (sqlite3_exec(db_.get(), sql, nullptr, nullptr, nullptr) == SQLITE_OK) return {};
    return cause();
}

Result<Store> Store::open(const std::string& path) {
    const mode_t before = umask(0077);
    sqlite3* raw = nullptr;
    const int rc = sqlite3_open_v2(path.c_str(), &raw, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
    Store store{std::unique_ptr<sqlite3, Close>(raw)};
    const std::string what = "open state " + path;
    if (rc == SQLITE_OK) {
        sqlite3_busy_timeout(raw, 2000);
        // The exclusive lock keeps a second daemon off the same records; it ends with the process.
        const Status ready =
            store.execute("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;");
        umask(before);
        if (!ready) return store.not_opened(path);
    } else {
        umask(before);
        return store.not_opened(path);
    }
    sqlite3_wal_hook(  // in the place of SQLite's own
        raw,
        [](void* pages, sqlite3*, const char*, int count) {
            *static_cast<int*>(pages) = count;
            return SQLITE_OK;
        },
        store.log_pages_.get());
    TRY_SET(const auto version, store.prepare("PRAGMA user_version", "", ""));
    if (sqlite3_step(version.get()) != SQLITE_ROW) return store.not_opened(path);
    const int found = sqlite3_column_int(version.get(), 0);
    if (found == schema_version) return store;  // nothing is written: a full disk stops no daemon from starting
    if (found > schema_version)
        return Error(Errc::unsupported, fmt::format("{}: its format is {}, this bananad knows up to {}; use the newer "
                                                    "bananad that wrote it",
                                                    what, found, schema_version));
    if (!store.execute(fmt::format("BEGIN; {} PRAGMA user_version={}; COMMIT", schema, schema_version).c_str()))
        return store.not_opened(path);
    return store;
}

Status Store::checkpoint() {
    int log = 0, done = 0;
    if (sqlite3_wal_checkpoint_v2(db_.get(), nullptr, SQLITE_CHECKPOINT_PASSIVE, &log, &done) != SQLITE_OK)
        return error("checkpoint");
    // The first write behind it waits for the disk once more: let it be this one.
    return execute(fmt::format("PRAGMA user_version={}", schema_version).c_str());
}

Result<Store::Statement> Store::prepare(std::string_view sql, const std::string& kind, const std::string& key) {
    auto& kept = statements_[sql];
    if (!kept) {
        sqlite3_stmt* raw = nullptr;
        if (sqlite3_prepare_v3(db_.get(), sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT, &raw,
                               nullptr) != SQLITE_OK)
            return error("prepare statement");
        kept.reset(raw);
    }
    Statement statement(kept.get());
    const int parameters = sqlite3_bind_parameter_count(kept.get());
    if (parameters >= 1) TRY(bind_text(kept.get(), 1, kind));
    if (parameters >= 2) TRY(bind_text(kept.get(), 2, key));
    return statement;
}

Result<std::vector<Record>> Store::list(const std::string& kind) {
    TRY_SET(const auto statement,
            prepare("SELECT key, version, document FROM record WHERE kind=?1 ORDER BY key", kind, ""));
    std::vector<Record> out;
    int rc = 0;
    while ((rc = sqlite3_step(statement.get())) == SQLITE_ROW) {
        const std::string key = column_text(statement.get(), 0);
        auto document = Json::parse(column_text(statement.get(), 2));
        if (!document) return document.error().context(fmt::format("read {} {}", kind, key));
        out.push_back({key, sqlite3_column_int64(statement.get(), 1), std::move(*document)});
    }
    if (rc != SQLITE_DONE) return error("list " + kind);
    return out;
}

Result<std::optional<Record>> Store::get(const std::string& kind, const std::string& key) {
    TRY_SET(const auto statement, prepare("SELECT version, document FROM record WHERE kind=?1 AND key=?2", kind, key));
    const int rc = sqlite3_step(statement.get());
    if (rc == SQLITE_DONE) return std::optional<Record>();
    if (rc != SQLITE_ROW) return error(fmt::format("read {} {}", kind, key));
    auto document = Json::parse(column_text(statement.get(), 1));
    if (!document) return document.error().context(fmt::format("read {} {}", kind, key));
    return std::optional<Record>(Record{key, sqlite3_column_int64(statement.get(), 0), std::move(*document)});
}

Result<int64_t> Store::write(const char* operation, std::string_view sql, const std::string& kind,
                             const std::string& key, const Json& document, int64_t expected) {
    const std::string what = fmt::format("{} {} {}", operation, kind, key);
    const std::string text = document.dump();
    if (text.size() > json_max_bytes)  // it could not be read again, nor anything else of its kind be listed
        return Error(Errc::invalid, fmt::format("{}: {} bytes; the limit is {}", what, text.size(), json_max_bytes));
    TRY_SET(const auto statement, prepare(sql, kind, key));
    TRY(bind_text(statement.get(), 3, text).context(what));
    if (sqlite3_bind_parameter_count(statement.get()) >= 4) sqlite3_bind_int64(statement.get(), 4, expected);
    const int rc = sqlite3_step(statement.get());
    if (rc == SQLITE_DONE)
        return Error(Errc::busy, fmt::format("{}: it was changed meanwhile (version {} expected)", what, expected));
    if (rc != SQLITE_ROW) return error(what);
    const int64_t version = sqlite3_column_int64(statement.get(), 0);
    // RETURNING gives its row before the statement ends; only the end commits, and can fail (disk full).
    if (sqlite3_step(statement.get()) != SQLITE_DONE) return error(what);
    if (*log_pages_ >= checkpoint_at_last) (void)checkpoint();  // it is tried again; this write has been done
    return version;
}

Result<int64_t> Store::put(const std::string& kind, const std::string& key, const Json& document) {
    return write("write",
                 "INSERT INTO record VALUES(?1, ?2, 1, ?3) ON CONFLICT(kind, key) DO UPDATE SET version=version+1, "
                 "document=?3 RETURNING version",
                 kind, key, document, 0);
}

Result<int64_t> Store::compare_and_set(const std::string& kind, const std::string& key, int64_t expected,
                                       const Json& document) {
    const char* sql = expected == 0
                          ? "INSERT INTO record VALUES(?1, ?2, 1, ?3) ON CONFLICT DO NOTHING RETURNING version"
                          : "UPDATE record SET version=version+1, document=?3 WHERE kind=?1 AND key=?2 AND "
                            "version=?4 RETURNING version";
    return write("write", sql, kind, key, document, expected);
}

Status Store::erase(const std::string& kind, const std::string& key) {
    TRY_SET(const auto statement, prepare("DELETE FROM record WHERE kind=?1 AND key=?2", kind, key));
    if (sqlite3_step(statement.get()) != SQLITE_DONE) return error(fmt::format("delete {} {}", kind, key));
    return {};
}

Result<std::string> Store::claim(const std::string& host) {
    constexpr const char *kind = "host", *key = "name", *member = "name";
    TRY_SET(const auto known, get(kind, key));
    if (known) return known->document.string(member).context("read host name");
    // A new file, or an earlier version's. A full disk stops no daemon: it is noted at a later start, then.
    (void)put(kind, key, Json::object({{member, host}}));
    return host;
}

}  // namespace banana::registry
