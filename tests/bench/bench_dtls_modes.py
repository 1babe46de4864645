"""The DTLS wire's two modes side by side, as Crossbow's Table 1 has it: a lane that is woken for what arrives, and one that
polls while there is load. Of both hosts' banana-tunneld together, a second: wake-ups of the lanes, frames for each, context
switches; and how idle the machine's CPUs were."""

import os
import pathlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench_dtls_measure import PORT
from bench_peers import flow
from bench_peers_product import DtlsWire
from bench_world import BenchError, inside

PROGRAM = "banana-tunneld"
SECONDS = 2.0
SETTLE = 0.3  # until a load has its speed: traffic begins by then, and goes on after the measurement
# load: UDP datagrams of 128 B a second; None: one TCP flow that takes all it can
LOADS: dict[str, int | None] = {"idle": 0, "1 000 frames/s": 1000, "20 000 frames/s": 20000, "60 000 frames/s": 60000,
                                "TCP x1": None}


@dataclass
class Counters:
    """Of both hosts, since their start."""

    time: float
    wakeups: int
    polls: int
    frames: int
    switches: int
    idle: float  # seconds, of all CPUs; others' reniced work leaves them as good as idle

    def since(self, start: "Counters") -> str:
        span = self.time - start.time
        wakeups, frames = self.wakeups - start.wakeups, self.frames - start.frames
        cpus = os.cpu_count() or 1
        return (f"{wakeups / span:>12.0f}{(self.polls - start.polls) / span:>12.0f}{frames / max(wakeups, 1):>12.1f}"
                f"{(self.switches - start.switches) / span:>12.0f}{(self.idle - start.idle) / span / cpus * 100:>11.0f}%")


HEADER = (f"{'load':<18}{'poll':<8}{'wake-ups/s':>12}{'polls/s':>12}{'frames each':>12}{'switches/s':>12}{'CPUs idle':>12}")


def lanes(shown: object) -> Iterator[dict]:
    """The lanes in what `wire show` says, wherever they stand in it."""
    if isinstance(shown, dict):
        for name, value in shown.items():
            if name == "lanes" and isinstance(value, list):
                yield from (one for one in value if isinstance(one, dict))
            else:
                yield from lanes(value)
    elif isinstance(shown, list):
        for value in shown:
            yield from lanes(value)


def processes(row: DtlsWire) -> list[int]:
    """Both hosts' banana-tunneld."""
    spaces = {os.readlink(f"/proc/{host.pid}/ns/net") for host in (row.uplink_host, row.spike_host)}
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if (path / "comm").read_text().strip() == PROGRAM and os.readlink(path / "ns/net") in spaces:
                found.append(int(path.name))
        except OSError:
            continue  # it has ended
    if len(found) < 2:
        raise BenchError(f"{row.label}: {len(found)} processes {PROGRAM}, not one on each host")
    return found


def switches(pid: int) -> int:
    total = 0
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
        total += sum(int(line.split()[1]) for line in path.read_text().splitlines() if "ctxt_switches" in line)
    return total


def read(row: DtlsWire) -> Counters:
    all_lanes = [lane for host in (row.uplink_host, row.spike_host) for lane in lanes(row.shown(host))]
    if not all_lanes:
        raise BenchError(f"{row.label}: `wire show` tells of no lanes")
    fields = pathlib.Path("/proc/stat").read_text(encoding="ascii").split()
    return Counters(time.monotonic(), *(sum(int(lane.get(name, 0)) for lane in all_lanes)
                                        for name in ("wakeups", "polls", "frames")),
                    sum(switches(pid) for pid in processes(row)), (int(fields[2]) + int(fields[4])) / os.sysconf("SC_CLK_TCK"))


def under(row: DtlsWire, rate: int | None) -> str:
    """A line of the table: the load, for SECONDS."""
    if rate == 0:
        return _measured(row)
    words = (["sink", PORT, "1", "0", "60000"], ["pour", PORT, "1", row.target, "60"]) if rate is None else (
        ["count", PORT], ["pace", PORT, row.target, "128", str(rate), "0", "60000", "plain"])
    with subprocess.Popen(inside(row.ext, [flow(), *words[0]]), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True) as receiver:
        assert receiver.stdout
        receiver.stdout.readline()
        with subprocess.Popen(inside(row.guest, [flow(), *words[1]]), stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as sender:
            try:
                time.sleep(SETTLE)
                return _measured(row)
            finally:
                sender.kill()
                receiver.kill()


def _measured(row: DtlsWire) -> str:
    start = read(row)
    time.sleep(SECONDS)
    return read(row).since(start)


def side_by_side(rows: list[DtlsWire]) -> None:
    print(f"\nThe DTLS wire's modes, both hosts together\n{HEADER}")
    for load, rate in LOADS.items():
        for row in rows:
            print(f"{load:<18}{row.poll:<8}{under(row, rate)}", flush=True)
