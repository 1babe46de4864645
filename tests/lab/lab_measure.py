"""Migrations, and what they cost: QEMU's stop-to-resume by its own clock, and what an open-loop stream each way sees.

The stream to the guest is timed by the guest's clock, which stands still while the guest is stopped: its longest gap
leaves that time out. How long it stood still is the report's clock_shift, an independent witness of stop-to-resume.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import lab_guest
from banana_lab import EXT, Lab, LabError, Nic, Vm, wait_until
from lab_base import say
from lab_net import underlay_address
from lab_process import Process
from lab_tap import TapWitness

PANICS = 2  # in a row, of one guest; or late senders
LATE_MAX_MS = 20  # of the sender of frames to the guest, which has a CPU as soon as it wants one
T = TypeVar("T")

EVENT = re.compile(r"event (\S+) at (\d+)\.(\d+) for domain '?(.*?)'?: (.*)")


@dataclass(frozen=True)
class Event:
    host: str
    name: str
    at: float  # seconds since 1970, by QEMU itself: hosts of a lab share their clock
    domain: str
    data: str


@dataclass
class Migration:
    domain: str
    source: str
    destination: str
    seconds: float  # of virsh migrate, all in all
    stop_to_resume_ms: float | None  # None: the guest was not running, or events were lost
    events: list[Event] = field(default_factory=list)


class EventReader:
    """Follows QEMU's events on a host. Made ready, it misses none."""

    def __init__(self, lab: Lab, host: str) -> None:
        self.host = host
        self._process: Process = lab.spawn(host, "stdbuf", "-oL", "virsh", "qemu-monitor-event", "--loop")

    def wait_ready(self) -> None:
        wait_until(self._registered, 15, f"virsh qemu-monitor-event on {self.host}")

    def _registered(self) -> bool:
        """virsh says nothing when it has registered; but then, and only then, its main thread sits in read() on its
        own pipe (system call 0), waiting for ^C."""
        if self._process.status is not None:
            raise LabError(f"virsh qemu-monitor-event on {self.host} ended: {self._process.read().strip()}")
        try:
            with open(f"/proc/{self._process.pid}/syscall", encoding="ascii") as syscall:
                return syscall.read().startswith("0 ") and self._is_virsh()
        except (FileNotFoundError, ProcessLookupError):
            return False

    def _is_virsh(self) -> bool:
        with open(f"/proc/{self._process.pid}/comm", encoding="ascii") as comm:
            return comm.read().strip() == "virsh"

    def events(self) -> list[Event]:
        return [Event(self.host, name, int(seconds) + int(micros) / 1e6, domain, data)
                for name, seconds, micros, domain, data in EVENT.findall(self._process.read())]

    def close(self) -> None:
        self._process.kill()


def migrate(lab: Lab, name: str, destination: str, *, options: tuple[str, ...] = ("--live", "--persistent"),
            timeout: float = 120) -> Migration:
    """virsh migrate, measured. A migration that libvirt refuses or fails is a LabError with its words."""
    source = lab.find_vm(name)
    if source == destination:
        raise LabError(f"guest {name} runs on {destination} already")
    readers = [EventReader(lab, source), EventReader(lab, destination)]
    try:
        for reader in readers:
            reader.wait_ready()
        began = time.monotonic()
        lab.virsh(source, "migrate", *options, name, f"qemu+tcp://{underlay_address(destination)}/system",
                  timeout=timeout)
        seconds = time.monotonic() - began
        try:
            wait_until(lambda: _first(readers[1], "RESUME", name), 5, "RESUME", 0.01)
        except LabError:
            pass  # a paused guest gives none
        stop, resume = _first(readers[0], "STOP", name), _first(readers[1], "RESUME", name)
        events = sorted((event for reader in readers for event in reader.events()), key=lambda event: event.at)
        between = (resume.at - stop.at) * 1000 if stop and resume else None
        return Migration(name, source, destination, seconds, between, events)
    finally:
        for reader in readers:
            reader.close()


def _first(reader: EventReader, event: str, domain: str) -> Event | None:
    return next((seen for seen in reader.events() if seen.name == event and seen.domain == domain), None)


class Traffic:
    """`traffic run` from a host (ext) to a guest: begun once both streams flow, ended by finish()."""

    def __init__(self, lab: Lab, peer: str, rate: int = 1000, host: str = EXT, options: tuple[str, ...] = ()) -> None:
        self._process = lab.spawn(host, "traffic", "run", "--peer", peer, "--rate", rate, "--json", "--until-eof",
                                  *options)
        try:
            self._process.expect("READY\n", 30)
        except LabError:
            self._process.kill()
            raise

    def __enter__(self) -> "Traffic":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()

    def finish(self) -> dict[str, Any]:
        """Its report; see tests/traffic/accounting.h for what the figures mean."""
        self._process.close_input()
        self._process.wait(60)
        report = next((line for line in self._process.output.splitlines() if line.startswith("{")), None)
        if report is None:
            raise LabError(f"traffic run gave no report: {self._process.output.strip()}")
        result: dict[str, Any] = json.loads(report)
        return result


@dataclass
class Measured:
    migration: Migration
    traffic: dict[str, Any]
    tap_gap_ms: float | None  # the longest time without one at the guest's tap, of the datagrams that reached the guest


def migrate_under_traffic(lab: Lab, name: str, destination: str, peer: str, rate: int = 1000,
                          lead: float = 1.0, tail: float = 2.0, punctual: bool = False) -> Measured:
    """One migration with a second of traffic before it and two after it. `punctual`: a LateSender where that matters,
    and nothing else is at work beside it."""
    with Traffic(lab, peer, rate) as traffic, TapWitness(lab) as witness:
        time.sleep(lead)  # not a wait for anything: a piece of the measurement
        migration = migrate(lab, name, destination)
        time.sleep(tail)
        report = traffic.finish()
        lab_guest.must_answer(lab, name)  # a guest that has died makes figures of no meaning
        if punctual and report["to_guest"]["longest_late_ms"] > LATE_MAX_MS:
            raise LateSender(f"the sender at ext was late by {report['to_guest']['longest_late_ms']:.0f} ms itself")
        return Measured(migration, report, witness.longest_gap_ms(report["to_guest"]))


class LateSender(LabError):
    """This machine stood still: what was to be sent meanwhile came in one burst, and measures nothing."""


def despite_panics(lab: Lab, name: str, migration: Callable[[bool], T]) -> T:
    """The kernel of an emulated guest may panic or hang after a migration, by a fault of QEMU's (see ODD_PAGES in
    lab_guest.py): on plain libvirt, beside a busy machine, once in 210. That is told, the guest is started again where
    it was, and the migration is done again. So is one in which the sender did not keep its times. `migration` is told
    whether it is to be punctual: not at the last attempt, where a machine is what it is."""
    source = lab.find_vm(name)
    for _ in range(PANICS):
        try:
            return migration(True)
        except lab_guest.GuestPanic as panic:
            at = re.findall(r"RIP: 0010:(\S+)", str(panic))
            say(f"the kernel of guest {name} gave up{f' (at {at[-1]})' if at else ''}, as emulated ones do now and "
                f"then, on plain libvirt as well: it is started again on {source}, and migrated again")
            with contextlib.suppress(LabError):  # one that hangs still runs
                lab.virsh(lab.find_vm(name), "destroy", name)
            lab_guest.forget_consoles(lab, name)
            lab.virsh(source, "start", name)
            lab_guest.wait_ready(lab, name, source)
        except LateSender as late:
            say(f"{late}: guest {name} is migrated back to {source}, and measured again")
            migrate(lab, name, source)
    return migration(False)


def row(label: str, measured: Measured) -> str:
    migration, to, back = measured.migration, measured.traffic["to_guest"], measured.traffic["from_guest"]
    tcp = measured.traffic["tcp"]
    stopped = migration.stop_to_resume_ms
    return (f"{label:<22} {migration.source}>{migration.destination} {migration.seconds:7.2f} s"
            f" {'-' if stopped is None else f'{stopped:.1f}':>9} ms"
            f" {to['lost']:>6} {back['lost']:>6} {to['longest_gap_ms']:>8.1f} {back['longest_gap_ms']:>8.1f} ms"
            f" {to['duplicates'] + back['duplicates']:>5} {to['reordered'] + back['reordered']:>5}"
            f" {tcp['longest_stall_ms']:>8.1f} ms {'yes' if tcp['survived'] else 'NO':>4}")


HEADER = (f"{'':<22} {'':7} {'took':>9} {'stopped':>12} {'lost':>6} {'lost':>6} {'gap':>8} {'gap':>8}    {'dup.':>5}"
          f" {'reord':>5} {'stall':>8}    {'TCP':>4}\n"
          f"{'':<22} {'':7} {'':>9} {'':>12} {'to':>6} {'from':>6} {'to':>8} {'from':>8}    {'':>5} {'':>5} {'TCP':>8}"
          f"    {'kept':>4}")


def stretch_bridge(lab: Lab, hosts: tuple[str, str] = ("hv1", "hv2")) -> None:
    """What one does without Banana: a bridge br0 on both hosts, joined by a VXLAN made by hand; hv1's has the
    uplink."""
    for here, there in (hosts, hosts[::-1]):
        lab.exec(here, "ip", "-batch", "-", stdin=f"""\
link add br0 type bridge
link add vx0 type vxlan id 42 local {underlay_address(here)} remote {underlay_address(there)} dstport 4789
link set vx0 mtu 1500 master br0 up
{'link set eth1 master br0 up' if here == 'hv1' else ''}
link set br0 mtu 1500 up
""")


def measure_plain(name: str | None = None, rounds: int = 1, rate: int = 1000) -> list[Measured]:
    """Plain libvirt, in a lab of its own: a guest on br0 migrated hv1 -> hv2 and back, `rounds` times."""
    results = []
    with Lab(2, name=name, bananad=False) as lab:
        stretch_bridge(lab)
        lab.start_vm(Vm("plain", [Nic(bridge="br0", address="10.77.0.99/24")], timed=True), "hv1")
        for _ in range(rounds):
            for destination in ("hv2", "hv1"):
                results.append(migrate_under_traffic(lab, "plain", destination, "10.77.0.99", rate))
    return results


def print_plain(rounds: int) -> None:
    results = measure_plain(rounds=rounds)
    say(HEADER)
    for measured in results:
        say(row("plain libvirt", measured))
