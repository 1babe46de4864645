#include <doctest/doctest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <sstream>
#include <thread>

#include "base/fd.h"
#include "base/json.h"
#include "cli/run.h"

using namespace banana;

namespace {

// A daemon's stand-in: answers each request line by what `answer` gives, in a thread of its own; "" hangs up.
class FakeDaemon {
public:
    using Answer = std::function<std::string(const Json& request)>;

    explicit FakeDaemon(Answer answer) : answer_(std::move(answer)) {
        std::string name = std::filesystem::temp_directory_path() / "banana-cli-XXXXXX";
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        dir_ = name;
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path().copy(address.sun_path, sizeof address.sun_path - 1);
        listener_ = Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        REQUIRE(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
        REQUIRE(::listen(listener_.get(), 8) == 0);
        thread_ = std::thread([this] { serve(); });
    }
    ~FakeDaemon() {
        ::shutdown(listener_.get(), SHUT_RDWR);  // ends accept()
        thread_.join();
        std::filesystem::remove_all(dir_);
    }
    std::string path() const { return dir_ + "/s"; }

private:
    void serve() {
        while (true) {
            const Fd client(::accept(listener_.get(), nullptr, nullptr));
            if (!client) return;
            std::string buffer;
            char chunk[4096];
            for (ssize_t n = 0; (n = ::recv(client.get(), chunk, sizeof chunk, 0)) > 0;) {
                buffer.append(chunk, static_cast<size_t>(n));
                if (!answer_lines(client, buffer)) break;
            }
        }
    }
    bool answer_lines(const Fd& client, std::string& buffer) {
        for (size_t end = 0; (end = buffer.find('\n')) != std::string::npos; buffer.erase(0, end + 1)) {
            const auto request = Json::parse(buffer.substr(0, end));
            std::string answer = request ? answer_(*request) : "";
            if (answer.empty()) {
                ::shutdown(listener_.get(), SHUT_RDWR);
                return false;
            }
            answer += '\n';
            if (::send(client.get(), answer.data(), answer.size(), MSG_NOSIGNAL) < 0) return false;
        }
        return true;
    }

    Answer answer_;
    std::string dir_;
    Fd listener_;
    std::thread thread_;
};

std::string reply(const Json& request, const Json& result) {
    return Json::object({{"jsonrpc", "2.0"}, {"id", request.get("id")}, {"result", result}}).dump();
}

std::string refusal(const Json& request, Errc code, const char* text) {
    const Json data = Json::object({{"code", errc_name(code)}});
    const Json error = Json::object({{"code", -32000}, {"message", text}, {"data", data}});
    return Json::object({{"jsonrpc", "2.0"}, {"id", request.get("id")}, {"error", error}}).dump();
}

struct Ran {
    int code;
    std::string out, err;
};

Ran run(const FakeDaemon& daemon, std::vector<std::string> args) {
    std::ostringstream out, err;
    args.insert(args.end(), {"--socket", daemon.path(), "--timeout", "10"});
    const int code = cli::run(args, out, err);
    return {code, out.str(), err.str()};
}

}  // namespace

TEST_CASE("a command asks its method with its params and shows the answer") {
    const FakeDaemon daemon([](const Json& request) {
        if (request.get("method").as_string() != "corm.show" || request.get("params").dump() != R"({"name":"lab"})")
            return refusal(request, Errc::failed, "unexpected request");
        return reply(request, Json::object({{"name", "hv1/lab"}, {"mtu", 1500}}));
    });
    const Ran people = run(daemon, {"corm", "show", "lab"});
    CHECK(people.code == 0);
    CHECK(people.out == "name             hv1/lab\nmtu              1500\n");
    CHECK(people.err.empty());
    CHECK(run(daemon, {"corm", "show", "lab", "--brief"}).out == "hv1/lab\n");
    const Ran machine = run(daemon, {"corm", "show", "lab", "--json"});
    CHECK(machine.code == 0);
    CHECK(Json::parse(machine.out)->dump() == R"({"name":"hv1/lab","mtu":1500})");
}

TEST_CASE("the daemon's errors become exit codes, and a line on stderr") {
    const std::pair<Errc, int> codes[]{{Errc::failed, 1},  {Errc::invalid, 2},     {Errc::not_found, 10},
                                       {Errc::exists, 4},  {Errc::refused, 4},     {Errc::busy, 4},
                                       {Errc::timeout, 3}, {Errc::unsupported, 1}, {Errc::unreachable, 1}};
    for (const auto& [errc, code] : codes) {
        CAPTURE(errc_name(errc));
        const FakeDaemon daemon([errc = errc](const Json& request) { return refusal(request, errc, "peer\x1b hv2"); });
        const Ran ran = run(daemon, {"corm", "list"});
        CHECK(ran.code == code);
        CHECK(ran.out.empty());
        CHECK(ran.err == "banana: peer\\x1b hv2\n");
    }
}

TEST_CASE("no daemon, one that hangs up, and one that is silent") {
    std::ostringstream out, err;
    CHECK(cli::run({"status", "--socket", "/nonexistent/s"}, out, err) == 8);
    CHECK(out.str().empty());
    CHECK(err.str().starts_with("banana: connect to bananad at /nonexistent/s: No such file or directory"));
    const FakeDaemon gone([](const Json&) { return ""; });
    CHECK(run(gone, {"status"}).code == 8);
    const FakeDaemon silent([](const Json&) { return R"({"jsonrpc":"2.0","method":"note"})"; });
    CHECK(cli::run({"status", "--socket", silent.path(), "--timeout", "0.05"}, out, err) == 3);
}

TEST_CASE("wrong usage asks nobody") {
    const FakeDaemon daemon([](const Json& request) { return refusal(request, Errc::failed, "asked"); });
    const Ran ran = run(daemon, {"corm", "create", "lab"});
    CHECK(ran.code == 2);
    CHECK(ran.err.find("asked") == std::string::npos);
    CHECK(run(daemon, {"--help"}).code == 0);
}

TEST_CASE("ping counts what comes back") {
    int asked = 0;
    const FakeDaemon daemon([&asked](const Json& request) {
        if (request.get("params").dump() != R"({"name":"s","timeout_ms":1000,"size":100})")
            return refusal(request, Errc::failed, "unexpected params");
        if (++asked == 2) return reply(request, Json::object({{"lost", true}}));
        return reply(request, Json::object({{"rtt_us", asked * 1000}, {"size", 100}}));
    });
    const Ran ran = run(daemon, {"ping", "s", "--size", "100"});
    CHECK(ran.code == 0);
    CHECK(ran.out ==
          "1: 1.000 ms, 100 bytes\n2: lost\n3: 3.000 ms, 100 bytes\n"
          "3 sent, 2 came back; 1.000 ms least, 2.000 ms mean, 3.000 ms most\n");
    const Ran machine = run(daemon, {"ping", "s", "--size", "100", "--count", "1", "--json"});
    CHECK(Json::parse(machine.out)->dump() ==
          R"({"sent":1,"received":1,"rtt_us":{"min":4000,"mean":4000,"max":4000},"name":"s",)"
          R"("probes":[{"rtt_us":4000,"size":100}]})");
    const FakeDaemon deaf([](const Json& request) { return reply(request, Json::object({{"lost", true}})); });
    const Ran lost = run(deaf, {"ping", "s", "--count", "2"});
    CHECK(lost.code == 3);
    CHECK(lost.err == "banana: ping s: no probe came back\n");
    const FakeDaemon stranger([](const Json& request) { return refusal(request, Errc::not_found, "no Spike 's'"); });
    CHECK(run(stranger, {"ping", "s"}).code == 10);
}

TEST_CASE("ping does not call a wire lost of which a daemon that hangs tells nothing") {
    std::atomic<int64_t> patience = 0;
    const FakeDaemon silent([&patience](const Json& request) {
        patience = request.get("params").get("timeout_ms").as_int();
        return R"({"jsonrpc":"2.0","method":"note"})";
    });
    std::ostringstream out, err;
    CHECK(cli::run({"ping", "s", "--socket", silent.path(), "--timeout", "0.1"}, out, err) == 3);
    CHECK(out.str() == "");
    CHECK(err.str() == "banana: ask bananad: no answer in time (is it hung, or busy?)\n");
    CHECK(patience == 50);  // a probe's end comes before ours
}

TEST_CASE("doctor's exit code follows its checks; migration show picks a Spike") {
    const FakeDaemon daemon([](const Json& request) {
        const char* answer = request.get("method").as_string() == "doctor"
                                 ? R"({"checks":[{"name":"a","ok":true},{"name":"b","ok":false}]})"
                                 : R"({"migrations":[{"spike":"hv1/a/net0"},{"spike":"hv1/b/net0"}]})";
        return reply(request, *Json::parse(answer));
    });
    const Ran doctor = run(daemon, {"doctor", "--brief"});
    CHECK(doctor.code == 1);
    CHECK(doctor.out == "b\n");
    CHECK(run(daemon, {"migration", "show", "--brief"}).out == "hv1/a/net0\nhv1/b/net0\n");
    CHECK(run(daemon, {"migration", "show", "b/net0", "--brief"}).out == "hv1/b/net0\n");
    CHECK(run(daemon, {"migration", "show", "c/net0"}).code == 10);
}

TEST_CASE("pki works without a daemon, and shows no secret") {
    std::string dir = std::filesystem::temp_directory_path() / "banana-pki-XXXXXX";
    REQUIRE(::mkdtemp(dir.data()) != nullptr);
    std::ostringstream out, err;
    CHECK(cli::run({"pki", "init", "--dir", dir, "--socket", "/nonexistent/s"}, out, err) == 0);
    CHECK(cli::run({"pki", "issue", "hv1", "--dir", dir, "--json"}, out, err) == 0);
    CHECK(cli::run({"pki", "issue", "hv1", "--dir", dir}, out, err) == 4);
    CHECK(cli::run({"pki", "issue", "HV1", "--dir", dir}, out, err) == 2);
    CHECK(cli::run({"pki", "issue", "hv1", "--dir", dir + "/nope"}, out, err) == 10);
    CHECK(out.str().find("PRIVATE") == std::string::npos);
    out.str("");
    CHECK(cli::run({"pki", "show", "--dir", dir, "--brief"}, out, err) == 0);
    CHECK(out.str() == dir + "/ca.crt\n" + dir + "/hv1.crt\n");
    out.str("");
    CHECK(cli::run({"pki", "show", dir + "/hv1.crt"}, out, err) == 0);
    CHECK(out.str().find("CN=hv1") != std::string::npos);
    CHECK(out.str().find("controller") != std::string::npos);
    std::filesystem::remove_all(dir);
}
