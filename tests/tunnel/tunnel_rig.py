"""Two hosts' banana-tunneld without bananad, and the network between them.

                    10.9.1.0/24              10.9.2.0/24
    h1  u1 .1 =========== r1 .254  r  r2 .254 =========== .2 u2  h2
     |                        |                                   |
   tunneld                 routes, or a relay                  tunneld
     |                     (tests/relay) at .254                  |
   bnd0000002a 10.10.0.1                                        bnd0000002a 10.10.0.2

h1, r and h2 are network namespaces. 192.0.2.0/24 is a black hole in r: a peer that is configured there is never
reached, and only the other end can dial.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import unittest
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tunnel_flows import Numbered
from tunnel_world import (BUILD, RUN, SANITIZED, TUNNELD, inside, make_namespaces, remove_namespaces, run, sysctl, udp,
                          wait_until)

Json = Any
PORT = 4790
NOWHERE = "192.0.2.1"
CONNECTOR = "0000002a"
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 2, 0x1000, 0x4000, 0x100


class ControlError(Exception):
    """An error answer; its code is the first argument."""


class Control:
    """A controller's connection."""

    def __init__(self, path: pathlib.Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(20)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.events: list[Json] = []  # so far
        self._id = 0

    def close(self) -> None:
        self.socket.close()

    def call(self, method: str, params: Json = None, fds: Sequence[int] = ()) -> Json:
        self._id += 1
        self.send(json.dumps({"id": self._id, "method": method, "params": params or {}}).encode(), fds)
        answer = self.answer()
        assert answer["id"] == self._id, answer
        if "error" in answer:
            raise ControlError(answer["error"]["code"], answer["error"]["message"])
        return answer["result"]

    def send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        if fds:
            socket.send_fds(self.socket, [message], list(fds))
        else:
            self.socket.send(message)

    def answer(self) -> Json:
        """The next message that is no event. EOFError when tunneld has hung up."""
        while True:
            message = self.socket.recv(1 << 18)
            if not message:
                raise EOFError
            read = json.loads(message)
            if "event" not in read:
                return read
            self.events.append(read)


class Host:
    """A namespace with its tunneld, whose `control` is the controller that is heard."""

    def __init__(self, number: int, lanes: int = 1) -> None:
        self.number, self.name, self.lanes = number, f"h{number}", lanes
        self.address = f"10.9.{number}.{number}"
        self.other = f"h{3 - number}"
        self.socket = RUN / f"{self.name}.sock"
        self.log = RUN / f"{self.name}.log"
        self.certificate = RUN / f"{self.name}-tunnel.crt"
        self.ca = RUN / "ca/ca.crt"
        self.wires: dict[str, tuple[int, int]] = {}  # connector: queues, MTU
        self._poll = "auto"
        self._peers: list[Json] = []

    def words(self) -> list[str]:
        words = [TUNNELD, "--socket", self.socket, "--certificate", self.certificate, "--key",
                 self.certificate.with_suffix(".key"), "--ca", self.ca, "--log-level", "debug"]
        return [str(word) for word in words]

    def start(self) -> None:
        with inside(self.name), open(self.log, "ab") as output:
            self.process = subprocess.Popen(self.words(), stdout=output, stderr=output)
        self.connect()

    def connect(self) -> None:
        def attempt() -> Control | None:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return Control(self.socket)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                    raise
                return None

        self.control = wait_until(attempt, 10, f"{self.name}'s tunneld to listen")
        self.control.call("hello", {"version": 1})

    def call(self, method: str, params: Json = None, fds: Sequence[int] = ()) -> Json:
        return self.control.call(method, params, fds)

    def configure(self, poll: str = "auto", rekey_seconds: int = 3600, rekey_records: int = 1 << 27,
                  cpus: Sequence[int] = ()) -> None:
        with inside(self.name):
            sockets = [udp(self.address, port, reuse=port != 0) for _ in range(self.lanes) for port in (PORT, 0)]
        with contextlib.ExitStack() as stack:
            for one in sockets:
                stack.enter_context(one)
            self._poll = poll
            self.call("configure", {"address": self.address, "port": PORT, "lanes": self.lanes, "cpus": list(cpus),
                                    "poll": poll, "rekey_seconds": rekey_seconds, "rekey_records": rekey_records},
                      [one.fileno() for one in sockets])

    def peer(self, address: str, lanes: int, name: str = "", more: Sequence[Json] = ()) -> None:
        self._peers = [{"name": name or self.other, "address": address, "port": PORT, "lanes": lanes}, *more]
        self.call("peers", {"peers": self._peers})

    def wire(self, queues: int, mtu: int = 1500, connector: str = CONNECTOR, device_mtu: int = 0) -> None:
        """A wire by a tap of ours; an address on the first's."""
        device = f"bnd{connector}"
        with inside(self.name):
            taps = [tap(device) for _ in range(queues)]
            try:
                if connector == CONNECTOR:
                    run("ip", "addr", "replace", f"10.10.0.{self.number}/24", "dev", device)
                run("ip", "link", "set", device, "mtu", device_mtu or mtu, "txqueuelen", 10000, "up")
                self.add_wire(connector, taps, mtu)
                self.wires[connector] = queues, mtu
            finally:
                for fd in taps:
                    os.close(fd)

    def add_wire(self, connector: str, queues: Sequence[int], mtu: int = 1500, peer: str = "") -> None:
        self.call("wire.add", {"connector": connector, "device": f"bnd{connector}", "peer": peer or self.other,
                               "mtu": mtu}, queues)

    def restart(self) -> None:
        """As a controller does when tunneld is gone: all is handed over again."""
        self.control.close()
        self.start()
        self.configure(self._poll)
        self.call("peers", {"peers": self._peers})
        for connector, (queues, mtu) in self.wires.items():
            self.wire(queues, mtu, connector)

    # ---- what it says

    def status(self) -> Json:
        return self.call("status")

    def show(self, connector: str = CONNECTOR) -> Json:
        return self.call("wire.show", {"connector": connector})

    def drops(self, connector: str = CONNECTOR) -> Counter[str]:
        """Of the wire, and of all lanes what is nobody's."""
        shown = self.show(connector)
        return Counter(shown["drops"]) + sum((Counter(lane["drops"]) for lane in shown["lanes"]), Counter())

    def session(self, lane: int = 0) -> Json:
        return self.status()["peers"][0]["lanes"][lane]

    def is_up(self) -> bool:
        return all(peer["state"] == "up" for peer in self.status()["peers"])

    def said(self, text: str) -> bool:
        return text in self.log.read_text()

    def reasons(self) -> str:
        """Why no session is up: of the status, and of all events so far."""
        peers = self.status()["peers"]
        return " | ".join([*(peer["reason"] for peer in peers), *(event["reason"] for event in self.control.events)])

    def memory(self) -> int:
        """Resident, bytes."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) * 1024

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(20)

    def end(self) -> None:
        """A sanitized one has to end by itself: then it looks for leaks. Whatever it found is a failure."""
        self.control.close()
        self.stop(signal.SIGTERM if SANITIZED else signal.SIGKILL)
        found = re.findall(r"^.*(?:Sanitizer|runtime error: ).*$", self.log.read_text(errors="replace"), re.MULTILINE)
        assert not found, f"{self.name}: {found[0]}"


def tap(device: str) -> int:
    """One more queue of a tap, which stays without queues, too: tunneld may die, the device does not."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
    fcntl.ioctl(fd, TUNSETPERSIST, 1)
    return fd


class Relay:
    """tests/relay between the hosts; `client` is the one that dials through it, the other cannot."""

    def __init__(self, client: Host, server: Host, rules: Sequence[object] = ()) -> None:
        listen, self.towards = f"10.9.{client.number}.254", server.address
        words = ["--listen", f"{listen}:{PORT}", "--to", f"{server.address}:{PORT}", "--from",
                 f"10.9.{server.number}.254", "--seed", 1, *rules]
        with inside("r"):
            self._process = subprocess.Popen([BUILD / "relay", *map(str, words)], stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE, text=True, bufsize=1)
        self._expect("ready")

    def _expect(self, wanted: str) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline().rstrip("\n")
        assert line.startswith(wanted), f"relay: '{line}' instead of '{wanted}'"
        return line[len(wanted):].strip()

    def do(self, *words: object) -> str:
        assert self._process.stdin
        command = " ".join(map(str, words))
        self._process.stdin.write(command + "\n")
        return self._expect(f"ok {command}")

    def stats(self) -> Json:
        return json.loads(self.do("stats"))

    def replay(self, datagrams: int) -> None:
        """Each way; returns when they are out."""
        self.do("replay", datagrams)
        self._expect("done replay")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class World:
    """All of the picture. Both tunnelds run, configured and with each other as peers; wires are the test's."""

    def __init__(self, lanes: tuple[int, int] = (1, 1), relayed: int = 0, rules: Sequence[object] = ()) -> None:
        """`relayed`: the number of the host that dials through a relay; 0: both dial, and routes lead to the other."""
        self.hosts = Host(1, lanes[0]), Host(2, lanes[1])
        self.lanes = min(lanes)
        self.relay: Relay | None = None
        make_namespaces("h1", "h2", "r")
        self._connect()
        make_certificates()
        for host in self.hosts:
            host.log.unlink(missing_ok=True)
        self._relayed, self._rules = relayed, rules

    def _connect(self) -> None:
        for host in self.hosts:
            n, net = host.number, f"10.9.{host.number}"
            run("ip", "link", "add", f"u{n}", "netns", host.name, "type", "veth", "peer", "name", f"r{n}", "netns", "r")
            run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", f"u{n}")
            run("ip", "-n", "r", "addr", "add", f"{net}.254/24", "dev", f"r{n}")
            run("ip", "-n", host.name, "link", "set", f"u{n}", "up")
            run("ip", "-n", "r", "link", "set", f"r{n}", "up")
            run("ip", "-n", host.name, "route", "add", "default", "via", f"{net}.254")
        run("ip", "-n", "r", "route", "add", "blackhole", "192.0.2.0/24")
        with inside("r"):
            sysctl("ipv4/ip_forward", 1)

    def start(self) -> "World":
        """Programs; separate, so that a test can change what they start with."""
        for host in self.hosts:
            host.start()
            host.configure()
        if self._relayed:
            client, server = self.hosts[self._relayed - 1], self.hosts[2 - self._relayed]
            self.relay = Relay(client, server, self._rules)
            server.peer(NOWHERE, client.lanes)
            client.peer(f"10.9.{client.number}.254", server.lanes)
        else:
            for host, other in (self.hosts, self.hosts[::-1]):
                host.peer(other.address, other.lanes)
        return self

    def wires(self, mtu: int = 1500) -> None:
        for host in self.hosts:
            host.wire(self.lanes, mtu)

    def link_mtu(self, mtu: int) -> None:
        for n in (1, 2):
            run("ip", "-n", "r", "link", "set", f"r{n}", "mtu", mtu)
            run("ip", "-n", f"h{n}", "link", "set", f"u{n}", "mtu", mtu)

    def up(self, seconds: float = 15) -> float:
        """Waits for a session in every lane of both hosts; seconds that it took."""
        begin = time.monotonic()
        wait_until(lambda: all(host.is_up() for host in self.hosts), seconds, "all sessions")
        return time.monotonic() - begin

    def close(self) -> None:
        if self.relay:
            self.relay.close()
        try:
            for host in self.hosts:
                if hasattr(host, "control"):
                    host.end()
        finally:
            remove_namespaces("h1", "h2", "r")


def make_certificates() -> None:
    if (RUN / "ca").exists():
        return
    run(BUILD / "banana", "pki", "init", "--dir", RUN / "ca")
    for name in ("h1", "h2", "h3"):
        issue(name)


def issue(name: str, *, ca: str = "ca", role: str = "tunnel") -> pathlib.Path:
    """The certificate's file; its key beside it."""
    out = RUN if ca == "ca" else RUN / f"{ca}-issued"
    out.mkdir(exist_ok=True)
    run(BUILD / "banana", "pki", "issue", name, "--role", role, "--dir", RUN / ca, "--out", out)
    return out / f"{name}-tunnel.crt" if role == "tunnel" else out / f"{name}.crt"


class TunnelCase(unittest.TestCase):
    """Shows what the tunnelds said when a test fails."""

    def world(self, *arguments: Any, **options: Any) -> World:
        made = World(*arguments, **options)
        self.addCleanup(made.close)
        return made.start()

    def numbered(self, *arguments: Any, **options: Any) -> Numbered:
        made = Numbered(*arguments, **options)
        self.addCleanup(made.close)
        return made

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        before = len(result.failures) + len(result.errors) if result else 0
        super().run(result)
        if result and len(result.failures) + len(result.errors) > before:
            for log in sorted(RUN.glob("*.log")):
                print(f"---- {log.name}\n" + "\n".join(log.read_text().splitlines()[-25:]), file=sys.stderr)
        return result
