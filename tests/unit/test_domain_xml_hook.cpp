// banana-hook's one run, against a control socket served by a thread of the test.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <thread>

#include "base/clock.h"
#include "base/fd.h"
#include "base/json.h"
#include "libvirt-hooks/domain_xml.h"
#include "libvirt-hooks/hook.h"
#include "libvirt-hooks/network_xml.h"

using namespace banana;
using namespace banana::hooks;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds long_enough{5000};  // never reached unless something hangs
constexpr milliseconds soon{150};

struct Folder {
    std::string path;
    Folder() {
        char name[] = "/tmp/banana-hook-XXXXXX";
        REQUIRE(mkdtemp(name) != nullptr);
        path = name;
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() { std::filesystem::remove_all(path); }
};

// Serves one connection: reads a line, then does what it is told.
class Server {
public:
    using Serve = std::function<void(int fd)>;
    explicit Server(Serve serve) {
        path_ = folder_.path + "/control.sock";
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strncpy(address.sun_path, path_.c_str(), sizeof(address.sun_path) - 1);
        listener_ = Fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        REQUIRE(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
        REQUIRE(listen(listener_.get(), 1) == 0);
        thread_ = std::thread([this, serve = std::move(serve)] {
            const Fd client(accept(listener_.get(), nullptr, nullptr));
            if (!client) return;
            char c = 0;
            while (read(client.get(), &c, 1) == 1 && c != '\n') request_ += c;
            serve(client.get());
        });
    }
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;
    ~Server() { finish(); }
    const std::string& path() const { return path_; }
    // What was asked; "" when nobody connected.
    const std::string& finish() {
        shutdown(listener_.get(), SHUT_RDWR);
        if (thread_.joinable()) thread_.join();
        return request_;
    }

private:
    Folder folder_;
    std::string path_, request_;
    Fd listener_;
    std::thread thread_;
};

void say(int fd, const std::string& text) {
    for (size_t done = 0; done < text.size();) {
        const ssize_t n = send(fd, text.data() + done, text.size() - done, MSG_NOSIGNAL);
        if (n <= 0) return;
        done += static_cast<size_t>(n);
    }
}
Server::Serve answer(const std::string& text) {
    return [text](int fd) { say(fd, text); };
}
// Until the client hangs up: a daemon that never answers.
void silent(int fd) {
    char c = 0;
    while (read(fd, &c, 1) > 0) {
    }
}
const std::string yes = R"({"jsonrpc":"2.0","id":1,"result":{}})"
                        "\n";
const std::string no = R"({"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"Corm lab is full","data":{}}})"
                       "\n";

std::string domain(const std::string& source, const std::string& metadata = "") {
    return "<domain type='kvm'>\n<name>vm1</name><uuid>6f0a2c6e-6c0f-4f0e-9d9b-0d4b6c1f7a11</uuid>\n<metadata>" +
           metadata + "</metadata><devices><graphics passwd='hunter2'/>\n<interface type='network'><source network='" +
           source + "'/></interface></devices></domain>\n";
}
const std::string ours = domain("banana-lab");
const std::string foreign = domain("default");
const std::string port_xml =
    "<hookData><network><name>banana-lab</name></network><networkport><uuid>1b2c</uuid>"
    "<owner><name>vm1</name><uuid>6f0a</uuid></owner><mac address='52:54:00:00:00:01'/></networkport></hookData>";

// Runs with `input` on stdin; `keep_open`: stdin does not end.
Outcome run_with(const std::string& input, const std::string& operation, const std::string& socket,
                 milliseconds deadline = long_enough, const std::string& driver = "qemu", bool keep_open = false) {
    int ends[2];
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
    const Fd reader(ends[0]);
    Fd writer(ends[1]);
    // A writer of its own, since a pipe holds 64 KiB; a reader that leaves early is no concern of its.
    std::thread feed([&] {
        signal(SIGPIPE, SIG_IGN);
        for (size_t done = 0; done < input.size();) {
            const ssize_t n = write(writer.get(), input.data() + done, input.size() - done);
            if (n <= 0) return;
            done += static_cast<size_t>(n);
        }
        if (!keep_open) writer.reset();
    });
    const Outcome out =
        run({.driver = driver, .object = "vm1", .operation = operation, .suboperation = "begin", .extra = "-"},
            {.input = reader.get(), .socket = socket, .deadline = deadline});
    // Lets a writer that is still at it end.
    std::string rest(65536, 0);
    fcntl(reader.get(), F_SETFL, O_NONBLOCK);
    while (feed.joinable() && !keep_open) {
        pollfd entry{.fd = reader.get(), .events = POLLIN, .revents = 0};
        poll(&entry, 1, -1);
        if (read(reader.get(), rest.data(), rest.size()) <= 0) break;
    }
    feed.join();
    return out;
}

const char* no_socket = "/nonexistent/control.sock";

}  // namespace

TEST_CASE("hook: bananad is asked and its yes lets libvirt go on") {
    Server server(answer(yes));
    const Outcome out = run_with(ours, "prepare", server.path());
    CHECK(out.status == 0);
    CHECK(out.message == "");
    const auto request = Json::parse(server.finish());
    REQUIRE(request.ok());
    CHECK(request->get("jsonrpc").as_string() == "2.0");
    CHECK(request->get("method").as_string() == "hook.qemu");
    const Json params = request->get("params");
    CHECK(params.get("object").as_string() == "vm1");
    CHECK(params.get("operation").as_string() == "prepare");
    CHECK(params.get("suboperation").as_string() == "begin");
    CHECK(params.get("extra").as_string() == "-");
    const auto facts = DomainFacts::from_json(params.get("domain"));
    REQUIRE(facts.ok());
    CHECK(facts->interfaces.at(0).network == "banana-lab");
    CHECK(server.finish().find("hunter2") == std::string::npos);
}

TEST_CASE("hook: a network port of ours") {
    Server server(answer(yes));
    CHECK(run_with(port_xml, "port-created", server.path(), long_enough, "network").status == 0);
    const auto request = Json::parse(server.finish());
    REQUIRE(request.ok());
    CHECK(request->get("method").as_string() == "hook.network");
    const auto port = NetworkPortFacts::from_json(request->get("params").get("port"));
    REQUIRE(port.ok());
    CHECK(port->mac == "52:54:00:00:00:01");
}

TEST_CASE("hook: bananad's error refuses the operation, in its words") {
    for (const char* operation : {"migrate", "restore", "prepare", "start"}) {
        Server server(answer(no));
        const Outcome out = run_with(ours, operation, server.path());
        CHECK(out.status == 1);
        CHECK(out.message == "banana: Corm lab is full");
    }
    Server server(answer(no));
    CHECK(run_with(port_xml, "port-created", server.path(), long_enough, "network").status == 1);
}

TEST_CASE("hook: what is only told never fails, whatever happens") {
    for (const char* operation : {"started", "stopped", "release", "reconnect"}) {
        CAPTURE(operation);
        Server server(answer(no));
        CHECK(run_with(ours, operation, server.path()).status == 0);
        CHECK(server.finish() != "");
        CHECK(run_with(ours, operation, no_socket).status == 0);
        CHECK(run_with("<domain 'banana-", operation, no_socket).status == 0);
        CHECK(run_with(ours, operation, no_socket, soon, "qemu", true).status == 0);
    }
    CHECK(run_with(port_xml, "port-deleted", no_socket, long_enough, "network").status == 0);
}

TEST_CASE("hook: guests and networks that are not ours do not meet bananad") {
    for (const char* operation : {"migrate", "prepare", "start", "started", "release", "reconnect"}) {
        const Outcome out = run_with(foreign, operation, no_socket);
        CHECK(out.status == 0);
        CHECK(out.message == "");
    }
    CHECK(run_with("<hookData><network><name>default</name></network></hookData>", "port-created", no_socket,
                   long_enough, "network")
              .status == 0);
    // Ours is mentioned, but no interface is on it.
    CHECK(run_with(domain("default", "<x xmlns='u' net='banana-lab'/>"), "start", no_socket).status == 0);
}

TEST_CASE("hook: a guest of which libvirt has kept the anchor alone is ours") {
    const std::string id = "<name>vm1</name><uuid>6f0a2c6e-6c0f-4f0e-9d9b-0d4b6c1f7a11</uuid>";
    const auto plugged_into = [&](const std::string& bridge) {
        const std::string interface = "<interface type='bridge'><source bridge='" + bridge + "'/></interface>";
        return run_with("<domain>" + id + "<devices>" + interface + "</devices></domain>", "prepare", no_socket).status;
    };
    CHECK(plugged_into("bn-lab") == 1);
    CHECK(plugged_into("br-lab") == 0);
}

TEST_CASE("hook: operations that are not ours do not even read stdin") {
    CHECK(run_with(ours, "attach", no_socket, soon, "qemu", true).message == "");
    CHECK(run_with(port_xml, "started", no_socket, soon, "network", true).message == "");
}

TEST_CASE("hook: bananad that is not there is named with the way to start it") {
    const Outcome out = run_with(ours, "prepare", no_socket);
    CHECK(out.status == 1);
    CHECK(out.message ==
          "banana: bananad is not running on this host (control socket /nonexistent/control.sock: No such file or "
          "directory); start it: systemctl start bananad");
    // A socket that a killed daemon left.
    Folder folder;
    const std::string stale = folder.path + "/s";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, stale.c_str(), sizeof(address.sun_path) - 1);
    {
        const Fd left(socket(AF_UNIX, SOCK_STREAM, 0));
        REQUIRE(bind(left.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    }
    CHECK(run_with(ours, "start", stale).message.find("bananad is not running on this host") != std::string::npos);
}

TEST_CASE("hook: the deadline holds for a bananad that does not answer") {
    Server server(silent);
    const int64_t start = monotonic_ns();
    const Outcome out = run_with(ours, "prepare", server.path(), soon);
    const int64_t took_ms = (monotonic_ns() - start) / 1'000'000;
    CHECK(out.status == 1);
    CHECK(out.message == "banana: bananad did not answer the prepare of vm1 within 150 ms");
    CHECK(took_ms >= 100);
    CHECK(took_ms < 3000);
}

TEST_CASE("hook: libvirt waits less where nothing can be refused") {
    Server server(silent);
    const int64_t start = monotonic_ns();
    const Outcome out = run_with(ours, "release", server.path());
    const int64_t took_ms = (monotonic_ns() - start) / 1'000'000;
    CHECK(out.status == 0);
    CHECK(out.message == "banana: bananad did not answer the release of vm1 within 1500 ms");
    CHECK(took_ms >= 1400);
    CHECK(took_ms < 4000);
}

TEST_CASE("hook: the deadline holds for a stdin that does not end") {
    Outcome out = run_with(ours, "prepare", no_socket, soon, "qemu", true);
    CHECK(out.status == 1);
    CHECK(out.message == "banana: read libvirt's XML: it did not end in time");
    // Nothing says that it is ours: not to be refused.
    out = run_with(foreign, "prepare", no_socket, soon, "qemu", true);
    CHECK(out.status == 0);
}

TEST_CASE("hook: an answer that is none refuses") {
    const auto refused = [](const Server::Serve& serve) {
        Server server(serve);
        const Outcome out = run_with(ours, "prepare", server.path());
        CHECK(out.message.starts_with("banana: "));
        CHECK(out.message.find('\n') == std::string::npos);
        return out.status == 1;
    };
    CHECK(refused(answer("what?\n")));
    CHECK(refused(answer("")));
    CHECK(refused(answer(R"({"jsonrpc":"2.0","id":1,"result":{)")));
    CHECK(refused(answer(std::string(3 << 20, 'x'))));
    CHECK(refused(answer(std::string(200000, '[') + "\n")));
    CHECK(refused(answer("{\"id\":1,\"error\":{\"message\":\"two\\nlines \\u001b[31m\"}}\n")));
}

TEST_CASE("hook: metadata that is wrong refuses the start with element and line, and nothing else") {
    const std::string wrong = domain(
        "banana-lab", "<banana:domain xmlns:banana='urn:banana:1'>\n<banana:spike interface='net7'/></banana:domain>");
    const Outcome out = run_with(wrong, "prepare", no_socket);
    CHECK(out.status == 1);
    CHECK(
        out.message ==
        "banana: metadata of domain vm1: line 4: <banana:spike interface='net7'>: the domain has no such interface; it "
        "has net0");
    Server server(answer(yes));
    CHECK(run_with(wrong, "reconnect", server.path()).status == 0);
    CHECK(server.finish() != "");
}

TEST_CASE("hook: hostile XML is refused if it mentions us, and shown to nobody") {
    const std::string bomb = "<!DOCTYPE d [<!ENTITY a 'hunter2'>]><domain x='banana-lab'>&a;</domain>";
    Outcome out = run_with(bomb, "prepare", no_socket);
    CHECK(out.status == 1);
    CHECK(out.message == "banana: read domain XML: it has a DOCTYPE, which is not accepted");
    const std::string large = ours + std::string(5 << 20, ' ');
    out = run_with(large, "prepare", no_socket);
    CHECK(out.status == 1);
    CHECK(out.message == "banana: read libvirt's XML: larger than 4194304 bytes");
    CHECK(run_with(std::string(5 << 20, ' '), "prepare", no_socket).status == 0);
    std::string deep = "<domain x='banana-lab'>";
    for (int i = 0; i < 50000; i++) deep += "<a>";
    CHECK(run_with(deep, "prepare", no_socket).status == 1);
    out = run_with("<domain x='banana-lab' passwd='hunter2", "start", no_socket);
    CHECK(out.status == 1);
    CHECK(out.message.find("hunter2") == std::string::npos);
}

TEST_CASE("hook: arguments") {
    const auto call = parse_arguments({"qemu", "vm1", "stopped", "end", "shutdown"});
    REQUIRE(call.ok());
    CHECK(call->extra == "shutdown");
    CHECK(parse_arguments({"network", "lab", "started"})->suboperation == "-");
    CHECK_FALSE(parse_arguments({}).ok());
    CHECK_FALSE(parse_arguments({"lxc", "a", "b"}).ok());
    CHECK_FALSE(parse_arguments({"qemu", "a", "b", "c", "d", "e"}).ok());
}
