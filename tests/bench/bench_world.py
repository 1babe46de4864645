"""Namespaces for the bench, and what runs in them; nothing outside sees any of it, and it ends with the bench.

isolate() starts the program again in a mount, pid and network namespace of its own, below a process that dies with the
first: an end of any kind, SIGKILL too, takes processes, links, mounts and pinned BPF objects with it.
"""

import ctypes
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

TOP = pathlib.Path(__file__).resolve().parents[2]
INSIDE = "BANANA_BENCH_INSIDE"  # set in the program's second life
UNDERLAY_MTU = 1600  # carries a guest's 1 500 whole, with VXLAN's 50, on either path
CLONE_NEWNET = 0x40000000
START_TIMEOUT = 30.0

_libc = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """What went wrong, and where: for the user as it stands."""


def isolate() -> None:
    """Returns in the namespaces; the outer process never does."""
    if os.environ.get(INSIDE):
        for directory in ("/run", "/sys/fs/bpf"):
            kind = "bpf" if directory.endswith("bpf") else "tmpfs"
            run(["mount", "-t", kind, kind, directory])
        run(["ip", "link", "set", "lo", "up"])
        os.setsid()  # for own_the_cpus()
        return
    if os.geteuid() != 0:
        raise SystemExit("bench-vxlan needs root: it makes namespaces and links")
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--net", "--fork", "--kill-child",
               "--mount-proc", "--propagation", "private", sys.executable, "-B", *sys.argv]
    # Whatever ends this process ends unshare, which ends the new namespaces' first process, and that all others.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        sys.exit(subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode)
    except KeyboardInterrupt:
        sys.exit(130)


def own_the_cpus() -> None:
    """The kernel shares CPUs among sessions first: ours goes before others', whatever their processes' priorities. Which of
    ours runs is as ever."""
    for path in pathlib.Path("/proc").glob("[0-9]*/autogroup"):
        try:
            path.write_text("-20", encoding="ascii")
        except OSError:
            pass  # it has just ended, or the kernel has no such thing


def build_dir() -> pathlib.Path:
    """Where the product's programs and `load` stand: $BANANA_BUILD, else build/ of the checkout, else its top."""
    named = os.environ.get("BANANA_BUILD")
    if named:
        return pathlib.Path(named).resolve()
    return TOP / "build" if (TOP / "build" / "bananad").exists() else TOP


def run(command: Sequence[str], stdin: str = "", timeout: float = 60) -> str:
    done = subprocess.run(command, input=stdin, text=True, capture_output=True, timeout=timeout, check=False)
    if done.returncode:
        shown = " ".join(command)[:200]
        raise BenchError(f"{shown}: status {done.returncode}: {(done.stderr or done.stdout).strip()[:500]}")
    return done.stdout


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"waited {timeout:.0f} s in vain for {what}")
        time.sleep(0.02)


# ---- namespaces ------------------------------------------------------------------------------------------------------

def inside(namespace: str, command: Sequence[str]) -> list[str]:
    """The command line that runs a command in a network namespace (`ip netns exec` would hide the bpffs)."""
    return ["nsenter", f"--net=/run/netns/{namespace}", *command]


@contextmanager
def visiting(namespace: str) -> Iterator[None]:
    """This thread in another network namespace: sockets that it makes stay there."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(there, CLONE_NEWNET) != 0:
            raise BenchError(f"enter namespace {namespace}: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            _libc.setns(home, CLONE_NEWNET)
    finally:
        os.close(there)
        os.close(home)


def make_namespace(name: str) -> None:
    """No IPv6, so that nothing speaks but what is measured; no netfilter on bridged frames, on either path."""
    run(["ip", "netns", "add", name])
    with visiting(name):
        for kind in ("all", "default"):
            _set(f"/proc/sys/net/ipv6/conf/{kind}/disable_ipv6", "1")
        for table in ("iptables", "ip6tables", "arptables"):
            _set(f"/proc/sys/net/bridge/bridge-nf-call-{table}", "0")
    ip(name, "link set lo up")


def _set(path: str, value: str) -> None:
    if os.path.exists(path):
        pathlib.Path(path).write_text(value, encoding="ascii")


def ip(namespace: str, *lines: str) -> None:
    run(inside(namespace, ["ip", "-batch", "-"]), stdin="".join(f"{line}\n" for line in lines), timeout=300)


def cable(near: str, near_device: str, far: str, far_device: str, mtu: int = 1500) -> None:
    """A veth pair between two namespaces, up."""
    ip(near, f"link add {near_device} mtu {mtu} type veth peer name {far_device} mtu {mtu} netns {far}",
       f"link set {near_device} up")
    ip(far, f"link set {far_device} up")


# ---- the product -----------------------------------------------------------------------------------------------------

class Control:
    """bananad's control socket: JSON-RPC 2.0, a line a message; requests may be pipelined."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(60)
        self._socket.connect(path)
        self._buffer = b""
        self._next = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, method: str, **params: object) -> int:
        self._next += 1
        request = {"jsonrpc": "2.0", "id": self._next, "method": method, "params": params}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        return self._next

    def receive(self) -> list[tuple[int, dict]]:
        """All answers that are there, at least one: the request's number, and the result. BenchError if one is an
        error."""
        while b"\n" not in self._buffer:
            data = self._socket.recv(1 << 16)
            if not data:
                raise BenchError("bananad closed the control socket")
            self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        answers = [json.loads(line) for line in lines]
        for answer in answers:
            if "error" in answer:
                raise BenchError(f"bananad: {answer['error'].get('message')}")
        return [(answer["id"], answer["result"]) for answer in answers]

    def call(self, method: str, **params: object) -> dict:
        self.send(method, **params)
        return self.receive()[0][1]


def wait_settled(*controls: Control) -> None:
    """Until the ports have their programs for good, as those of a wire that has stood for some seconds do."""
    for control in controls:
        wait_until(lambda: control.call("status")["ports_unsettled"] == 0, START_TIMEOUT, "ports to settle")  # noqa: B023
        control.close()


class Daemon:
    """bananad of a host, in a network namespace; without libvirt."""

    def __init__(self, namespace: str, host: str, underlay: str, peers: dict[str, str], pki: pathlib.Path) -> None:
        self.host = host
        self.run_dir = pathlib.Path(f"/run/{host}")
        self.run_dir.mkdir()
        lines = [f'host = "{host}"', f'underlay = "{underlay}"', "[tls]", f'ca = "{pki}/ca.crt"',
                 f'certificate = "{pki}/{host}.crt"', f'key = "{pki}/{host}.key"', "[libvirt]", 'uri = ""']
        for name, address in peers.items():
            lines += ["[[peer]]", f'name = "{name}"', f'address = "{address}"']
        config = self.run_dir / "bananad.toml"
        config.write_text("\n".join(lines) + "\n", encoding="ascii")
        self.log = self.run_dir / "log"
        words = [str(build_dir() / "bananad"), "--config", str(config), "--state-dir", str(self.run_dir / "state"),
                 "--run-dir", str(self.run_dir), "--bpf-dir", f"/sys/fs/bpf/{host}"]
        with open(self.log, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(inside(namespace, words), stdout=log, stderr=log)
        self.pid = self._process.pid
        self._wait()

    def control(self) -> Control:
        return Control(str(self.run_dir / "control.sock"))

    def cpu_seconds(self) -> float:
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise BenchError(f"bananad of {self.host} ended: {self.tail()}")
        try:
            control = self.control()
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        control.close()
        return True

    def _wait(self) -> None:
        wait_until(self._answers, START_TIMEOUT, f"bananad of {self.host}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-1500:].strip()


def make_pki(hosts: Sequence[str]) -> pathlib.Path:
    """A CA and certificates, all in one directory, flat."""
    banana, directory = str(build_dir() / "banana"), pathlib.Path("/run/pki")
    run([banana, "pki", "init", "--dir", str(directory)])
    for host in hosts:
        run([banana, "pki", "issue", host, "--dir", str(directory)])
        for path in directory.rglob(f"{host}.*"):
            if path.parent != directory:
                path.rename(directory / path.name)
    return directory


def start_daemons() -> tuple[Daemon, Daemon]:
    """hv1, which has the Corms, in namespace `hv1`; hv2, which has the Spikes, in `hv2`; connected to each other."""
    pki = make_pki(["hv1", "hv2"])
    one = Daemon("hv1", "hv1", "10.99.0.1", {"hv2": "10.99.0.2"}, pki)
    two = Daemon("hv2", "hv2", "10.99.0.2", {"hv1": "10.99.0.1"}, pki)
    control = one.control()
    wait_until(lambda: all(peer.get("state") == "up" for peer in control.call("peer.list")["peers"]), START_TIMEOUT,
               "the two bananads to connect")
    control.close()
    return one, two
