"""Namespaces for the tunnel's tests: nothing of a test outlives it, however it ends.

Whoever imports this runs in a pid, mount and network namespace of its own: the interpreter is started anew by
`unshare --kill-child`, so that a killed test takes all that it started with it. /run is its own, too.
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

BUILD = pathlib.Path(os.environ.get("BANANA_BUILD") or pathlib.Path(__file__).resolve().parent.parent.parent).resolve()
SANITIZED = "BANANA_TUNNELD" in os.environ
TUNNELD = pathlib.Path(os.environ["BANANA_TUNNELD"]) if SANITIZED else BUILD / "banana-tunneld"
CLONE_NEWNET = 0x40000000
CONTAINED = "BANANA_TUNNEL_TEST"  # in the environment: the folder with this run's files
RUN = pathlib.Path("/run/tunnel")

libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def contain() -> None:
    """Returns in namespaces of our own only. A shell is their first process: it reaps, and lets signals end the test.
    Outside, whoever is signalled or killed takes the namespaces along."""
    if os.environ.get(CONTAINED) == str(os.getppid()):
        return
    if os.geteuid() != 0:
        sys.exit("the tunnel's tests make namespaces and links: run them as root")
    script = 'mount -t tmpfs run /run && mkdir /run/netns /run/tunnel && export ' + CONTAINED + '=$$ && "$@"; exit $?'
    inner = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount",
                              "--mount-proc", "--net", "sh", "-c", script, "sh", *sys.orig_argv])

    def end(number: int, _: object) -> None:
        inner.kill()
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, end)
    status = inner.wait()
    os._exit(status if status >= 0 else 128 - status)


contain()


def run(*words: object) -> str:
    """A command that has to succeed; what it said."""
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(map(str, words))}: status {done.returncode}: {done.stdout.strip()}")
    return done.stdout


def wait_until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """The condition's first value that counts as true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s for {what}")
        time.sleep(0.01)
    return value


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Sockets, taps and programs of this block are made in network namespace `name`."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        _enter(there)
        yield
    finally:
        _enter(home)
        os.close(home)
        os.close(there)


def _enter(fd: int) -> None:
    if libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def make_namespaces(*names: str) -> None:
    for name in names:
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        with inside(name):  # idle is to be idle: no neighbour discovery
            for knob in ("all", "default"):
                sysctl(f"ipv6/conf/{knob}/disable_ipv6", 1)


def sysctl(name: str, value: object) -> None:
    """Of the network namespace that we are in."""
    pathlib.Path("/proc/sys/net", name).write_text(f"{value}\n", encoding="ascii")


def remove_namespaces(*names: str) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def udp(address: str, port: int, *, reuse: bool = False) -> socket.socket:
    """As a controller opens a lane's: see open_lane_sockets() in src/tunnel/udp.h."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if reuse:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    for option in (32, 33):  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
        made.setsockopt(socket.SOL_SOCKET, option, 16 << 20)
    made.setsockopt(socket.IPPROTO_IP, 10, 3)  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE
    made.bind((address, port))
    return made
