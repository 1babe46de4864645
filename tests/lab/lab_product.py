"""What tests ask of the product in a lab: its views over the control socket, the kernel's state beside them, and
whether the two agree on all hosts."""

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

from banana_lab import CONTROL_SOCKET, EXT, Lab, LabError, lab_name, underlay_address, wait_until

MIGRATE = ("--live", "--persistent")
CONVERGED = 30.0  # seconds for retired wires to drain and go, on a loaded machine
OWN_DEVICE = re.compile(r"bn[a-z][0-9a-f]{8}$")


# ---- Asking ----------------------------------------------------------------------------------------------------------

def own_lab(case: type, hosts: int, **options: Any) -> Lab:
    """A lab for one class of tests, beside any other that is up."""
    return Lab(hosts, name=f"{lab_name()[:10]}-{case.__name__[:12]}{os.getpid()}", **options)


def socket_path(lab: Lab, host: str) -> str:
    return str(lab.host(host).root / CONTROL_SOCKET.lstrip("/"))


def begin(lab: Lab, host: str, method: str, **params: object) -> Callable[[], dict[str, Any]]:
    """A call over a host's control socket, under way. What is returned waits for the answer; LabError with the daemon's
    words if it refuses."""
    control = socket.socket(socket.AF_UNIX)
    control.settimeout(20)
    control.connect(socket_path(lab, host))
    control.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode() + b"\n")

    def answer() -> dict[str, Any]:
        with control, control.makefile("rb") as lines:
            reply = json.loads(lines.readline())
        if "error" in reply:
            raise LabError(f"{host}: {method}: {reply['error']['message']}")
        result: dict[str, Any] = reply["result"]
        return result
    return answer


def ask(lab: Lab, host: str, method: str, **params: object) -> dict[str, Any]:
    return begin(lab, host, method, **params)()


def banana(lab: Lab, host: str, *words: object) -> str:
    return lab.exec(host, "banana", *words).stdout


def refused(lab: Lab, host: str, *words: object, status: int | None = None, timeout: float = 60) -> str:
    """Runs what must fail, and returns what it said to the user."""
    done = lab.exec(host, *words, check=False, timeout=timeout)
    if done.returncode == 0 or status not in (None, done.returncode):
        raise AssertionError(f"{host}: {' '.join(map(str, words))}: status {done.returncode}, wanted "
                             f"{status or 'a failure'}: {done.stdout}{done.stderr}")
    return done.stderr.strip()


def wire(lab: Lab, host: str, name: str) -> dict[str, Any] | None:
    """The wire of a Spike as a host's daemon sees it; None if it has none."""
    return next((one for one in ask(lab, host, "wire.list")["wires"] if one["name"] == name), None)


def spikes(lab: Lab, host: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(lab, host, "spike.list")["spikes"]
    return found


def doctor(lab: Lab, host: str, name: str) -> dict[str, Any]:
    return next(one for one in ask(lab, host, "doctor")["checks"] if one["name"] == name)


def bananad_log(lab: Lab, host: str) -> str:
    return (lab.host(host).root / "run/bananad.log").read_text(errors="replace")


# ---- Looking ---------------------------------------------------------------------------------------------------------

def devices(lab: Lab, host: str) -> set[str]:
    """The netdevs that Banana made on a host; anchors are not among them."""
    return {name for name in os.listdir(lab.host(host).root / "sys/class/net") if OWN_DEVICE.match(name)}


def allowed_senders(lab: Lab, host: str) -> set[tuple[str, int]]:
    """(address, VNI) that the host's VXLAN filter lets in."""
    listing = json.loads(lab.exec(host, "nft", "-j", "list", "set", "inet", "banana", "pairs4").stdout)
    elements = next(item["set"] for item in listing["nftables"] if "set" in item).get("elem", [])
    return {(address, vni) for element in elements for address, vni in [element["concat"]]}


def vni(connector: str) -> int:
    return int(connector, 16) & 0xffffff


def learned_port(lab: Lab, mac: str) -> str | None:
    """Behind which port of its Corm's bridge a guest is known, on hv1."""
    table = json.loads(lab.exec("hv1", "bridge", "-j", "fdb", "show").stdout)
    found = [entry["ifname"] for entry in table if entry["mac"] == mac and "bnb" in entry.get("master", "")]
    if len(found) > 1:
        raise AssertionError(f"{mac} is known behind {found}")
    return found[0] if found else None


def problems(lab: Lab, host: str) -> list[str]:
    """Where a host's kernel and records differ, or hold what should have gone."""
    found = []
    wires = ask(lab, host, "wire.list")["wires"]
    found += [f"{one['name']} is {one['phase']}" for one in wires if one["phase"] not in ("active", "wired")]
    connectors = {one["connector"] for one in wires if one["connector"]}
    connectors |= {one["standby"]["connector"] for one in wires if "standby" in one}
    present = {name for name in devices(lab, host) if name.startswith(("bnx", "bnd"))}
    tunnelled = {one["connector"] for one in wires if one["format"] == "dtls"}
    tunnelled |= {one["standby"]["connector"] for one in wires if "standby" in one and one["standby"]["format"] == "dtls"}
    wanted = {f"{'bnd' if connector in tunnelled else 'bnx'}{connector}" for connector in connectors}
    if present != wanted:
        found.append(f"wire devices {sorted(present)}, wanted {sorted(wanted)}")
    ports = {name for name in devices(lab, host) if name.startswith("bnc")}
    wanted = {one["port"] for one in wires if one["role"] in ("corm", "both")}
    if ports != wanted:
        found.append(f"Corm ports {sorted(ports)}, wanted {sorted(wanted)}")
    allowed = {number for _, number in allowed_senders(lab, host)}
    if allowed != {vni(connector) for connector in connectors - tunnelled}:
        found.append(f"VNIs let in {sorted(allowed)}, wanted those of {sorted(connectors - tunnelled)}")
    here = set(lab.exec(host, "virsh", "-q", "list", "--uuid").stdout.split())
    for one in spikes(lab, host):
        if one["kind"] == "tap" and (one["state"] != "wired" or one["uuid"] not in here):
            found.append(f"Spike {one['name']} is {one['state']}, its domain {one['domain']} runs: "
                         f"{one['uuid'] in here}")
    kernel = doctor(lab, host, "kernel")
    return found if kernel["ok"] else [*found, kernel["text"]]


def wait_tidy(lab: Lab, timeout: float = CONVERGED) -> None:
    """Until every host has what its records say, and nothing of a hand-over is left."""
    left: dict[str, list[str]] = {}

    def tidy() -> bool:
        left.clear()
        for host in lab.hypervisors:
            if found := problems(lab, host.name):
                left[host.name] = found
        return not left

    try:
        wait_until(tidy, timeout, "tidy hosts", 0.2)
    except LabError as error:
        raise LabError(f"{error}: {left}") from None


def snapshot_of(lab: Lab, host: str) -> tuple[list[object], ...]:
    """All that a refused request must not have changed on a host."""
    links = json.loads(lab.exec(host, "ip", "-j", "link").stdout)
    return (sorted((link["ifname"], link.get("master", ""), link["mtu"], link.get("ifalias", "")) for link in links),
            sorted(allowed_senders(lab, host)),
            sorted(str(one) for one in ask(lab, host, "corm.list")["corms"]),
            sorted(one["name"] for one in spikes(lab, host)),
            sorted((one["name"], one["epoch"], one["device"]) for one in ask(lab, host, "wire.list")["wires"]),
            sorted(lab.virsh(host, "list", "--name").split()),
            sorted(lab.virsh(host, "net-list", "--all", "--name").split()))


def snapshot(lab: Lab) -> dict[str, object]:
    """The same of every host, by name."""
    return {host.name: snapshot_of(lab, host.name) for host in lab.hypervisors}


# ---- Guests ----------------------------------------------------------------------------------------------------------

HELLO = """
import socket, sys, time
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    try:
        with socket.create_connection((sys.argv[1], 7700), 1) as guest:
            guest.settimeout(1)
            guest.sendall(b"hello\\n")
            if guest.recv(16).startswith(b"ok"):
                sys.exit(0)
    except OSError:
        time.sleep(0.05)
sys.exit(1)
"""


def reaches(lab: Lab, address: str, timeout: float = 20, host: str = EXT) -> bool:
    """Whether a guest's traffic program answers within the time, asked from ext."""
    return lab.exec(host, "python3", "-c", HELLO, address, timeout, check=False, timeout=timeout + 20).returncode == 0


def state(lab: Lab, host: str, name: str) -> str:
    return lab.exec(host, "virsh", "-q", "domstate", name, check=False).stdout.strip()


def migrate_words(name: str, destination: str, *options: str) -> list[str]:
    return ["virsh", "-q", "migrate", *(options or MIGRATE), name, f"qemu+tcp://{underlay_address(destination)}/system"]


def restart_bananad(lab: Lab, host: str) -> None:
    """By SIGKILL, as a crash would."""
    lab.kill_daemon(host, "bananad", signal.SIGKILL)
    lab.start_bananad(host)


def wait_peers(lab: Lab, hosts: list[str] | None = None, timeout: float = 30) -> None:
    """Until every host has every other one up, both ways."""
    names = hosts or [host.name for host in lab.hypervisors]

    def up(host: str) -> bool:
        return all(peer["state"] == "up" and peer["incoming"] for peer in ask(lab, host, "peer.list")["peers"]
                   if peer["name"] in names)

    wait_until(lambda: all(up(host) for host in names), timeout, f"{', '.join(names)} to be connected", 0.05)


def wait_whole(lab: Lab) -> None:
    """Until all hosts have each other, and their libvirtd: a Corm's network is then there when the Corm is."""
    wait_peers(lab)
    for host in lab.hypervisors:
        wait_until(lambda: ask(lab, host.name, "status")["libvirt"]["state"] == "connected", 30,  # noqa: B023
                   f"libvirt of {host.name}", 0.05)


@contextlib.contextmanager
def without_bananad(lab: Lab, *hosts: str) -> Iterator[None]:
    """Crashed on these hosts, and started again in the end."""
    for host in hosts:
        lab.kill_daemon(host, "bananad", signal.SIGKILL)
    try:
        yield
    finally:
        for host in hosts:
            lab.start_bananad(host)


@contextlib.contextmanager
def hanging(lab: Lab, host: str) -> Iterator[None]:
    """bananad stands still on this host meanwhile."""
    pid, = lab.pids(host, "bananad")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def create_corm(lab: Lab, *hosts: str) -> None:
    """Corm lab, of hv1's eth1; `hosts` have its network then."""
    banana(lab, "hv1", "corm", "create", "lab", "--uplink", "eth1")
    for host in hosts:
        wait_until(lambda at=host: "banana-lab" in lab.virsh(at, "net-list", "--name").split(), 20,
                   f"network banana-lab on {host}", 0.1)


def bring(lab: Lab, name: str, host: str) -> None:
    """The guest stands there, and all is settled."""
    here = lab.find_vm(name)
    if here != host:
        lab.exec(here, *migrate_words(name, host), timeout=120)
    wait_tidy(lab)


@contextlib.contextmanager
def rule(lab: Lab, host: str, hook: str, match: str) -> Iterator[None]:
    """Frames that match are dropped on a host's underlay meanwhile."""
    chain = f"chain c {{\ntype filter hook {hook} priority -400;\n{match} drop\n}}"
    lab.exec(host, "nft", "-f", "-", stdin=f"table inet lab_fault {{\n{chain}\n}}\n")
    try:
        yield
    finally:
        lab.exec(host, "nft", "delete", "table", "inet", "lab_fault")
