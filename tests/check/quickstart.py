"""The main job, end to end, in a lab of two hypervisors; and the same on plain libvirt beside it. Run by ./quickstart.

Both labs are up together, and their migrations take turns, so that a busy machine is as busy for one as for the other.
"""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator

import verdict
from build import PROGRAMS, Build, configure, guest_image
from steps import TOP, Steps, StepFailed, end_on_signals, forget, show

sys.path.insert(0, str(TOP / "tests/lab"))
import lab_measure  # noqa: E402
from banana_lab import EXT, Lab, LabError, Nic, Vm, wait_until  # noqa: E402

CORM, GUEST, ADDRESS, PLAIN_ADDRESS = "lab", "vm1", "10.77.0.10", "10.77.0.99"
ROUNDS = 3
KEEP = "--keep"


def wire_format(lab: Lab) -> str:
    """The format of the guest's wire, as the Corm's host tells it; - while there is none."""
    wires = json.loads(lab.exec("hv1", "banana", "--json", "wire", "list").stdout)["wires"]
    mine = [wire for wire in wires if f"/{GUEST}/" in wire["name"]]
    return " and ".join(sorted(str(wire["format"]) for wire in mine)) or "-"


def settled_format(lab: Lab, wanted: str) -> str:
    """What the wire's format has become; the old wire may take a moment to go."""
    with contextlib.suppress(LabError):
        wait_until(lambda: wire_format(lab) == wanted, 10, f"the wire to be {wanted}", 0.1)
    return wire_format(lab)


def prove_reached(lab: Lab, address: str) -> None:
    """From the machine on hv1's uplink: a stream each way and a TCP connection."""
    with lab_measure.Traffic(lab, address) as traffic:
        report = traffic.finish()
    if not report["complete"] or not report["tcp"]["survived"]:
        raise LabError(f"ext does not reach {address} as it should: {json.dumps(report)}")


def knows_all(lab: Lab, host: str) -> bool:
    """The daemon has its peer and its libvirt: both may start after it."""
    status = json.loads(lab.exec(host, "banana", "--json", "status").stdout)
    return bool(status["peers"]) and all(peer["state"] == "up" for peer in status["peers"]) and \
        status["libvirt"]["state"] == "connected"


def start_banana(steps: Steps, lab: Lab, where: str = "") -> None:
    with steps.step(f"banana corm create lab --uplink eth1, on hv1{where}"):
        lab.exec("hv1", "banana", "corm", "create", CORM, "--uplink", "eth1")
        for host in lab.hypervisors:
            wait_until(lambda: f"banana-{CORM}" in lab.virsh(host.name, "net-list", "--name").split(), 30,  # noqa: B023
                       f"network banana-{CORM} on {host.name}", 0.1)
    with steps.step(f"virsh define, virsh start: {GUEST} on hv1{where}"):
        lab.start_vm(Vm(GUEST, [Nic(network=f"banana-{CORM}", address=f"{ADDRESS}/24")], timed=True), "hv1")
    with steps.step(f"{GUEST} reached from ext, by hv1's uplink{where}") as words:
        prove_reached(lab, ADDRESS)
        words.append(f"wire {wire_format(lab)}")


def has_tunnel(lab: Lab, host: str) -> bool:
    peers = json.loads(lab.exec(host, "banana", "--json", "peer", "list").stdout)["peers"]
    return all(peer["tunnel"]["state"] == "up" for peer in peers)


@contextlib.contextmanager
def two_sites(steps: Steps, name: str) -> Iterator[Lab]:
    """The same with the hosts in different sites: their wires are DTLS."""
    with contextlib.ExitStack() as stack:
        with steps.step("lab up: two hypervisors of different sites"):
            lab = stack.enter_context(Lab(2, name=name, sites=["a", "b"]))
            for host in lab.hypervisors:
                wait_until(lambda: knows_all(lab, host.name) and has_tunnel(lab, host.name), 60,  # noqa: B023
                           f"peer, tunnel and libvirt of {host.name}", 0.1)
        start_banana(steps, lab, " (two sites)")
        yield lab


@contextlib.contextmanager
def plain_lab(steps: Steps, name: str) -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        with steps.step("plain libvirt for comparison: 2 hosts, a guest"):
            lab = stack.enter_context(Lab(2, name=name, bananad=False))
            lab_measure.stretch_bridge(lab)
            lab.start_vm(Vm("plain", [Nic(bridge="br0", address=f"{PLAIN_ADDRESS}/24")], timed=True), "hv1")
            prove_reached(lab, PLAIN_ADDRESS)
        yield lab


def one_migration(steps: Steps, kind: str, lab: Lab, guest: str, address: str, destination: str) -> verdict.Row:
    before = wire_format(lab) if lab.bananad else "bridge"
    where = " (two sites)" if kind == "dtls" else ""
    with steps.step(f"virsh migrate --live {guest} to {destination}{where}, 1 kHz + TCP") as words:
        measured = lab_measure.despite_panics(
            lab, guest, lambda punctual: lab_measure.migrate_under_traffic(lab, guest, destination, address,
                                                                           punctual=punctual))
        after = "bridge"
        if lab.bananad:
            after = settled_format(lab, "native" if destination == "hv1" else verdict.APART[kind])
        words.append(f"lost {measured.traffic['to_guest']['lost']} and {measured.traffic['from_guest']['lost']}")
        return verdict.Row.of(kind, measured, before, after)


def migrations(steps: Steps, banana: Lab, dtls: Lab, plain: Lab) -> list[verdict.Row]:
    rows = []
    for _ in range(ROUNDS):
        for destination in ("hv2", "hv1"):
            rows.append(one_migration(steps, "banana", banana, GUEST, ADDRESS, destination))
            rows.append(one_migration(steps, "dtls", dtls, GUEST, ADDRESS, destination))
            rows.append(one_migration(steps, "plain", plain, "plain", PLAIN_ADDRESS, destination))
    return rows


def how_to_look(name: str) -> str:
    return f"""
The lab is up. Look around:
    export BANANA_LAB={name} BANANA_BUILD={os.environ['BANANA_BUILD']}
    tests/lab/lab status
    tests/lab/lab exec hv1 banana status
    tests/lab/lab exec hv1 banana wire list
    tests/lab/lab exec hv1 virsh list
    tests/lab/lab migrate {GUEST} hv2 --peer {ADDRESS}
    tests/lab/lab sh {GUEST} ip address
    tests/lab/lab exec ext sh
End it:
    tests/lab/lab down"""


def job(steps: Steps, keep: bool) -> list[str]:
    named = os.environ.get("BANANA_BUILD")  # a build directory of the user's: made, not configured
    build = Build(pathlib.Path(named or TOP / "build"))
    os.environ["BANANA_BUILD"] = str(build.directory)
    try:
        if not named:
            with steps.step("configure"):
                configure(build)
        with steps.step("build bananad, banana-tunneld, banana and banana-hook"):
            build.make(*PROGRAMS)
        with steps.step("guest image"):
            guest_image(build)
    finally:
        forget(build.temporary)
    name = os.environ.get("BANANA_LAB", "quickstart")
    with contextlib.ExitStack() as stack:
        lab = Lab(2, name=name)
        with steps.step("lab up: two hypervisors with libvirtd and bananad"):
            stack.enter_context(lab)
            for host in lab.hypervisors:
                wait_until(lambda: knows_all(lab, host.name), 60, f"peer and libvirt of {host.name}", 0.1)  # noqa: B023
        start_banana(steps, lab)
        with two_sites(steps, f"{name[:26]}-dtls") as dtls, plain_lab(steps, f"{name[:26]}-plain") as plain:
            rows, more = migrations(steps, lab, dtls, plain), []
            if any(verdict.OF_MEDIANS.match(text) for text in verdict.broken_limits(rows)):
                print("The medians of gaps are apart by more than the limit: all migrations once more, as the guests of a "
                      "slow machine are late by chance.", flush=True)
                more = migrations(steps, lab, dtls, plain)
        print(f"\n{verdict.table([*rows, *more])}\n")
        broken = verdict.broken_limits(rows, more)
        if keep:
            lab.detach()
            stack.pop_all()
            print(how_to_look(name))
        else:
            with steps.step("lab down"):
                stack.close()
    return broken


def main() -> int:
    end_on_signals()
    steps = Steps()
    try:
        broken = job(steps, KEEP in sys.argv[1:])
    except (StepFailed, LabError) as error:
        show(error)
        return 1
    except KeyboardInterrupt:
        print("quickstart: interrupted; the lab is down", file=sys.stderr)
        return 130
    for text in broken:
        print(f"limit not held: {text}")
    if broken:
        return 1
    print(f"All limits held; {steps.seconds:.0f} s after the packages.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
