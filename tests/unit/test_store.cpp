#include "registry/store.h"

#include <doctest/doctest.h>
#include <sched.h>
#include <sqlite3.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <thread>

#include "base/bytes.h"
#include "base/fd.h"
#include "registry/table.h"

using namespace banana;
using namespace banana::registry;
namespace fs = std::filesystem;

namespace {

class Folder {
public:
    Folder() : path_(fs::temp_directory_path() / ("banana-store-" + random_hex(8))) { fs::create_directory(path_); }
    ~Folder() { fs::remove_all(path_); }
    std::string operator/(const std::string& name) const { return path_ / name; }

private:
    fs::path path_;
};

template <class T>
T must(Result<T> result) {
    if (!result) FAIL(result.error().message());
    return std::move(*result);
}

Json document(int64_t n) { return Json::object({{"n", n}}); }

int64_t n_of(Store& store, const std::string& key, const std::string& kind = "wire") {
    const auto record = must(store.get(kind, key));
    return record ? record->document.get("n").as_int() : -1;
}

// As another program would: behind the Store's back, once it is closed.
void sql(const std::string& path, const char* text) {
    sqlite3* db = nullptr;
    REQUIRE(sqlite3_open(path.c_str(), &db) == SQLITE_OK);
    CHECK(sqlite3_exec(db, text, nullptr, nullptr, nullptr) == SQLITE_OK);
    sqlite3_close(db);
}

struct Thing {
    int64_t n = 0;
    Json json() const { return document(n); }
    static Result<Thing> from_json(const Json& json) {
        TRY_SET(const int64_t n, json.integer("n"));
        return Thing{n};
    }
};

// Runs `body` in a thread with a mount namespace of its own and a small tmpfs on `path`; both go with the thread.
void on_small_disk(const std::string& path, const char* options, const std::function<void()>& body) {
    bool finished = false;
    std::thread([&] {
        try {
            REQUIRE(::unshare(CLONE_NEWNS) == 0);
            REQUIRE(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0);
            REQUIRE(::mount("tmpfs", path.c_str(), "tmpfs", 0, options) == 0);
            body();
            finished = true;
        } catch (...) {  // doctest's own, of a REQUIRE; it has been reported
        }
    }).join();
    REQUIRE(finished);
}

}  // namespace

TEST_CASE("store: put, get, list, erase; versions count the writes") {
    Store store = must(Store::open(":memory:"));
    CHECK_FALSE(must(store.get("wire", "a")).has_value());
    CHECK(must(store.put("wire", "b", document(1))) == 1);
    CHECK(must(store.put("wire", "b", document(2))) == 2);
    CHECK(must(store.put("wire", "a", document(3))) == 1);
    CHECK(must(store.put("corm", "a", document(4))) == 1);
    CHECK(n_of(store, "b") == 2);
    CHECK(n_of(store, "a", "corm") == 4);
    const auto list = must(store.list("wire"));
    REQUIRE(list.size() == 2);
    CHECK(list[0].key == "a");
    CHECK(list[1].key == "b");
    CHECK(list[1].version == 2);
    CHECK(must(store.list("spike")).empty());
    CHECK(store.erase("wire", "a").ok());
    CHECK(store.erase("wire", "a").ok());
    CHECK(n_of(store, "a") == -1);
    CHECK(n_of(store, "a", "corm") == 4);
    CHECK(must(store.put("wire", "a", document(5))) == 1);
    // Keys are bytes, not SQL.
    const std::string odd("'; DROP TABLE record; --\0%", 26);
    CHECK(must(store.put("wire", odd, document(6))) == 1);
    CHECK(n_of(store, odd) == 6);
    CHECK(must(store.list("wire")).size() == 3);
}

TEST_CASE("store: compare-and-set wins once") {
    Store store = must(Store::open(":memory:"));
    const auto lost = [&](int64_t expected) {
        const auto result = store.compare_and_set("wire", "w", expected, document(99));
        REQUIRE_FALSE(result.ok());
        CHECK(result.error().code() == Errc::busy);
        return result.error().message();
    };
    CHECK(lost(1) == "write wire w: it was changed meanwhile (version 1 expected)");  // of what is not there
    CHECK(must(store.compare_and_set("wire", "w", 0, document(1))) == 1);
    lost(0);
    CHECK(must(store.compare_and_set("wire", "w", 1, document(2))) == 2);
    lost(0);
    lost(1);
    lost(3);
    CHECK(n_of(store, "w") == 2);
    CHECK(must(store.put("wire", "w", document(3))) == 3);
    lost(2);
    CHECK(n_of(store, "w") == 3);
    CHECK(store.erase("wire", "w").ok());
    lost(3);
    CHECK(n_of(store, "w") == -1);
}

TEST_CASE("store: what was acknowledged survives a kill -9") {
    const Folder folder;
    const std::string path = folder / "state.db";
    int ends[2];
    REQUIRE(::pipe(ends) == 0);
    Fd in(ends[0]), out(ends[1]);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        auto store = Store::open(path);
        for (int64_t n = 1; store; ++n)
            if (!store->put("wire", "w", document(n)) || ::write(out.get(), &n, sizeof n) != sizeof n) break;
        ::_exit(1);
    }
    out.reset();
    int64_t n = 0, last = 0;
    while (last < 200 && ::read(in.get(), &n, sizeof n) == sizeof n) last = n;
    REQUIRE(::kill(child, SIGKILL) == 0);
    REQUIRE(::waitpid(child, nullptr, 0) == child);
    while (::read(in.get(), &n, sizeof n) == sizeof n) last = n;
    REQUIRE(last >= 200);
    Store store = must(Store::open(path));
    CHECK(n_of(store, "w") >= last);
    CHECK(must(store.get("wire", "w"))->version == n_of(store, "w"));
}

TEST_CASE("store: the file is its owner's, and keeps what it holds") {
    const Folder folder;
    const std::string path = folder / "state.db";
    const mode_t before = ::umask(0);
    {
        Store store = must(Store::open(path));
        CHECK(must(store.put("wire", "w", document(1))) == 1);
        for (const auto& entry : fs::directory_iterator(fs::path(path).parent_path())) {
            CAPTURE(entry.path().string());
            CHECK((entry.status().permissions() & (fs::perms::group_all | fs::perms::others_all)) == fs::perms::none);
        }
    }
    CHECK(::umask(before) == 0);  // was put back
    Store store = must(Store::open(path));
    CHECK(n_of(store, "w") == 1);
    CHECK(must(store.compare_and_set("wire", "w", 1, document(2))) == 2);
}

TEST_CASE("store: one opener at a time") {
    const Folder folder;
    const std::string path = folder / "state.db";
    {
        Store first = must(Store::open(path));
        const auto second = Store::open(path);
        REQUIRE_FALSE(second.ok());
        CHECK(second.error().message() ==
              "open state " + path + ": another bananad uses it; one alone may run on a state directory");
        CHECK(second.error().code() == Errc::busy);
        CHECK(must(first.put("wire", "w", document(1))) == 1);
    }
    Store again = must(Store::open(path));
    CHECK(n_of(again, "w") == 1);
}

TEST_CASE("store: a newer format is refused and left alone; a path that cannot be is named") {
    const Folder folder;
    const std::string path = folder / "state.db";
    must(must(Store::open(path)).put("wire", "w", document(1)));
    sql(path, "PRAGMA user_version=2");
    for (int attempt = 0; attempt < 2; ++attempt) {
        const auto store = Store::open(path);
        REQUIRE_FALSE(store.ok());
        CHECK(store.error().code() == Errc::unsupported);
        CHECK(store.error().message() == "open state " + path +
                                             ": its format is 2, this bananad knows up to 1; use the newer bananad "
                                             "that wrote it");
    }
    sql(path, "PRAGMA user_version=1");
    Store again = must(Store::open(path));
    CHECK(n_of(again, "w") == 1);

    CHECK(Store::open(folder / "none/state.db").error().message().starts_with("open state " + (folder / "none")));
    std::ofstream(folder / "text") << std::string(10000, 'x');
    const auto text = Store::open(folder / "text");
    REQUIRE_FALSE(text.ok());
    CHECK(text.error().message().find("not a database") != std::string::npos);
}

TEST_CASE("store: the records are of the host that claimed them first") {
    const Folder folder;
    const std::string path = folder / "state.db";
    {
        Store store = must(Store::open(path));  // as an earlier version left it: records, and nobody's
        REQUIRE(store.put("wire", "w", document(1)).ok());
        CHECK(must(store.claim("hv1")) == "hv1");
    }
    Store store = must(Store::open(path));
    CHECK(must(store.claim("hv9")) == "hv1");
    CHECK(must(store.claim("hv1")) == "hv1");
    CHECK(n_of(store, "w") == 1);
}

TEST_CASE("store: a document that could not be read again is not written") {
    Store store = must(Store::open(":memory:"));
    CHECK(must(store.put("wire", "w", document(1))) == 1);
    const Json large = Json::object({{"text", std::string(json_max_bytes, 'x')}});
    const auto result = store.put("wire", "w", large);
    REQUIRE_FALSE(result.ok());
    CHECK(result.error().code() == Errc::invalid);
    CHECK(n_of(store, "w") == 1);
    CHECK(must(store.list("wire")).size() == 1);
}

TEST_CASE("store: a full disk is an error, and takes nothing that was acknowledged") {
    if (::geteuid() != 0) {
        MESSAGE("skipped: needs root, for a small tmpfs");
        return;
    }
    const Folder folder;
    const std::string path = folder / "state.db";
    on_small_disk(folder / "", "size=512k", [&] {
        std::ofstream(folder / "filler") << std::string(200000, 'x');
        std::map<std::string, std::string> acknowledged;
        const auto holds_all = [&](Store& store) {
            const auto list = must(store.list("wire"));
            CHECK(list.size() == acknowledged.size());
            for (const auto& record : list) CHECK(record.document.get("t").as_string() == acknowledged[record.key]);
        };
        {
            Store store = must(Store::open(path));
            std::string failure;
            for (int i = 0; failure.empty() && i < 1000; ++i) {
                const std::string key = std::to_string(i), text(3000, static_cast<char>('a' + i % 26));
                const auto put = store.put("wire", key, Json::object({{"t", text}}));
                if (put)
                    acknowledged[key] = text;
                else
                    failure = put.error().message();
            }
            CHECK(failure == "write wire " + std::to_string(acknowledged.size()) + ": database or disk is full");
            REQUIRE(acknowledged.size() > 10);
            holds_all(store);
            Table<Thing> things(store, "thing");
            int64_t saved = 0;
            while (saved < 1000 && things.save("x", Thing{saved + 1})) ++saved;
            CHECK(saved < 1000);
            CHECK((things.find("x") == nullptr ? 0 : things.find("x")->n) == saved);
            CHECK(n_of(store, "x", "thing") == (saved == 0 ? -1 : saved));
        }
        Store store = must(Store::open(path));
        holds_all(store);
        fs::remove(folder / "filler");
        CHECK(store.put("wire", "0", document(1)).ok());
        CHECK(n_of(store, "0") == 1);
    });
}

TEST_CASE("store: a disk that cannot be written to is told as such") {
    if (::geteuid() != 0) {
        MESSAGE("skipped: needs root, for a small tmpfs");
        return;
    }
    const Folder folder;
    const std::string path = folder / "state.db";
    const std::string below = path.substr(0, path.rfind('/'));
    const std::string told = "open state " + path + ": write to " + below + ": Read-only file system";
    on_small_disk(folder / "", "size=512k", [&] {
        const auto remount = [&](unsigned long flags) {
            REQUIRE(::mount(nullptr, (folder / "").c_str(), nullptr, MS_REMOUNT | flags, nullptr) == 0);
        };
        remount(MS_RDONLY);
        CHECK(Store::open(path).error().message() == told);
        remount(0);
        must(must(Store::open(path)).put("wire", "w", document(1)));
        remount(MS_RDONLY);
        CHECK(Store::open(path).error().message() == told);
    });
}

TEST_CASE("table: memory and disk in step") {
    Store store = must(Store::open(":memory:"));
    Table<Thing> table(store, "thing");
    CHECK(table.save("a", {1}).ok());
    CHECK(table.save("b", {2}).ok());
    CHECK(table.save("a", {3}).ok());
    const Thing* b = table.find("b");
    CHECK(table.save("c", {4}).ok());
    CHECK(b == table.find("b"));
    CHECK(table.find("a")->n == 3);
    CHECK(n_of(store, "a", "thing") == 3);
    CHECK(table.keys() == std::vector<std::string>{"a", "b", "c"});

    // Somebody else wrote: neither memory nor disk takes ours.
    CHECK(store.put("thing", "a", document(50)).ok());
    CHECK(table.save("a", {4}).error().code() == Errc::busy);
    CHECK(table.find("a")->n == 3);
    CHECK(n_of(store, "a", "thing") == 50);

    CHECK(table.erase("b").ok());
    CHECK(table.erase("b").ok());
    CHECK(table.find("b") == nullptr);
    CHECK(n_of(store, "b", "thing") == -1);
    CHECK(table.save("b", {5}).ok());  // begins anew

    CHECK(store.put("thing", "odd", Json::object({{"m", 1}})).ok());
    Table<Thing> fresh(store, "thing");
    std::vector<std::string> bad;
    CHECK(fresh.load([&](const Error& error) { bad.push_back(error.message()); }).ok());
    CHECK(bad == std::vector<std::string>{"thing odd: member 'n' is missing"});
    CHECK(fresh.size() == 3);
    CHECK(fresh.find("a")->n == 50);
    CHECK(fresh.save("a", {51}).ok());
    int64_t sum = 0;
    fresh.each([&](const Thing& thing) { sum += thing.n; });
    CHECK(sum == 51 + 5 + 4);
    CHECK(must(store.get("thing", "odd")).has_value());  // left on the disk
}

TEST_CASE("no write waits for the disk, and a checkpoint empties the log") {
    Folder folder;
    const std::string path = folder / "state.db";
    auto store = must(Store::open(path));
    const Json text = Json::object({{"text", std::string(3000, 'x')}});
    for (int i = 0; i < 1500; ++i) must(store.put("corm", "k" + std::to_string(i % 50), text));
    CHECK(store.wants_checkpoint());
    const auto before = fs::file_size(path);
    const Status done = store.checkpoint();
    REQUIRE(done);
    CHECK_FALSE(store.wants_checkpoint());
    CHECK(fs::file_size(path) > before);
    must(store.put("corm", "last", text));
    CHECK_FALSE(store.wants_checkpoint());
    CHECK(must(store.list("corm")).size() == 51);
}
