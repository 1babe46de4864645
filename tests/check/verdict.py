"""quickstart's table, and the limits that its figures must hold.

Limits, for each of Banana's migrations: at most 20 frames lost each way at 1 kHz, and a longest gap at most 20 ms above
plain libvirt's in the same run.

How gaps are compared. A receiver's longest gap has two parts: the time for which QEMU stood still, and what the
network added. QEMU's part varies from migration to migration by more than the limit, under TCG above all, and is no work
of Banana's or of the bridge's. So the network's part is compared, "beyond stop" in the table: from the guest, the gap
less QEMU's own stop-to-resume; to the guest, the gap as it is, because the guest's clock times it, and that stands still
with the guest (by how much stands in the column "clock"; what of QEMU's stop it does not leave out is taken off). Each
way by itself, Banana's worst of the run against plain libvirt's worst plus 20 ms. Gaps as they were measured stand in
the table, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

LOST_LIMIT = 20
GAP_LIMIT_MS = 20.0


@dataclass(frozen=True)
class Row:
    kind: str  # banana or plain
    path: str  # hv1>hv2
    before: str
    after: str
    stopped: float | None  # QEMU's stop-to-resume, ms
    clock: float           # for how long the guest's clock stood still, ms
    lost_to: int
    lost_from: int
    gap_to: float  # ms, by the guest's clock
    gap_from: float
    kept: bool  # the TCP connection survived, and both streams were counted to their ends

    @staticmethod
    def of(kind: str, measured: Any, before: str, after: str) -> "Row":
        migration, traffic = measured.migration, measured.traffic
        to, back = traffic["to_guest"], traffic["from_guest"]
        return Row(kind, f"{migration.source}>{migration.destination}", before, after, migration.stop_to_resume_ms,
                   max(0.0, -to["clock_shift_ms"]), to["lost"], back["lost"], to["longest_gap_ms"],
                   back["longest_gap_ms"], bool(traffic["complete"] and traffic["tcp"]["survived"]))

    @property
    def beyond_to(self) -> float:
        """A clock that did not stand still leaves QEMU's stop in the gap."""
        return max(0.0, self.gap_to - max(0.0, (self.stopped or 0.0) - self.clock - 5.0))

    @property
    def beyond_from(self) -> float:
        return max(0.0, self.gap_from - (self.stopped or 0.0))


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'':7} {'':8} {'':16} {'QEMU':>8} {'guest':>7} {'frames lost':>13} {'longest gap':>15} "
             f"{'beyond stop':>15} {'TCP':>5}",
             f"{'':7} {'':8} {'wire':<16} {'stopped':>8} {'clock':>7} {'to':>6} {'from':>6} {'to':>7} {'from':>7} "
             f"{'to':>7} {'from':>7} {'kept':>5}"]
    for row in sorted(rows, key=lambda row: row.kind):
        wire = f"{row.before} -> {row.after}" if row.kind == "banana" else "(bridge, VXLAN)"
        stopped = "-" if row.stopped is None else f"{row.stopped:.1f}"
        lines.append(f"{row.kind:<7} {row.path:<8} {wire:<16} {stopped:>8} {row.clock:>7.1f} {row.lost_to:>6} "
                     f"{row.lost_from:>6} {row.gap_to:>7.1f} {row.gap_from:>7.1f} {row.beyond_to:>7.1f} "
                     f"{row.beyond_from:>7.1f} {'yes' if row.kept else 'NO':>5}")
    lines.append("Times in ms; lost of 1 000 frames a second each way. To the guest: by the guest's clock, which\n"
                 "stands still while QEMU is stopped. Beyond stop: a gap less the time that QEMU itself stood still.")
    return "\n".join(lines)


def broken_limits(rows: Sequence[Row]) -> list[str]:
    """What did not hold, in words; empty if all did."""
    banana, plain = ([row for row in rows if row.kind == kind] for kind in ("banana", "plain"))
    broken = []
    for row in banana:
        expected = "vxlan" if row.path.endswith("hv2") else "native"
        if row.after != expected or row.before == row.after:
            broken.append(f"{row.path}: wire {row.before} -> {row.after}, not to {expected}")
        if row.stopped is None:
            broken.append(f"{row.path}: QEMU gave no STOP or no RESUME")
        if not row.kept:
            broken.append(f"{row.path}: the TCP connection did not survive, or a stream was not counted to its end")
        for way, lost in (("to", row.lost_to), ("from", row.lost_from)):
            if lost > LOST_LIMIT:
                broken.append(f"{row.path}: {lost} frames lost {way} the guest, at most {LOST_LIMIT} may be")
    if not banana or not plain:
        return broken + ["not measured on both Banana and plain libvirt"]
    ways: list[tuple[str, Callable[[Row], float]]] = [("to", lambda row: row.beyond_to),
                                                      ("from", lambda row: row.beyond_from)]
    for way, beyond in ways:
        limit = max(map(beyond, plain)) + GAP_LIMIT_MS
        worst = max(banana, key=beyond)
        if beyond(worst) > limit:
            broken.append(f"{worst.path}: a gap {way} the guest of {beyond(worst):.1f} ms beyond QEMU's stop; plain "
                          f"libvirt's worst plus {GAP_LIMIT_MS:.0f} ms is {limit:.1f} ms")
    return broken
