"""The figures of bench-dtls: what they are called, their tables, and what the DTLS wire has to reach."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bench_dtls_measure import Search, idle_round_trip, loaded_round_trip, tcp
from bench_peers import Row

# figure: heading, unit
FIGURES = {
    "tcp1": ("TCP x1", "Gbit/s"),
    "cpu": ("CPU", "s/GB"),
    "tcp4": ("TCP x4", "Gbit/s"),
    "udp1300": ("UDP 1300 B", "Gbit/s"),
    "udp128": ("UDP 128 B", "kpps"),
    "udp128gso": ("128 B, GSO", "kpps"),
    "rtt": ("idle", "us"),
    "rtt-load": ("loaded", "us"),
}
ONLY = ("tcp1", "tcp4", "udp1300", "udp128", "rtt", "rtt-load")  # by default; `cpu` comes with tcp1
MORE = ("udp128gso",)  # the guest's machine hands many datagrams to its kernel at once
SEARCHED = {"udp1300": (1300, "plain"), "udp128": (128, "plain"), "udp128gso": (128, "gso")}
ROUNDS = 5  # the least for a verdict
WIDTH = 11


@dataclass
class Result:
    """A row's figures, one of each a round."""

    row: Row
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in FIGURES})
    longest: int = 0  # frame on the underlay
    over: int = 0  # frames longer than FRAME_MAX
    searches: dict[str, Search] = field(default_factory=dict)

    def median(self, figure: str) -> float | None:
        return statistics.median(self.values[figure]) if self.values[figure] else None

    def measure(self, figure: str) -> None:
        """One more value."""
        for name, value in self._measure(figure).items():
            self.values[name].append(value)

    def _measure(self, figure: str) -> dict[str, float]:
        if figure == "tcp1":
            return dict(zip(("tcp1", "cpu"), tcp(self.row, 1), strict=True))
        if figure == "tcp4":
            return {figure: tcp(self.row, 4)[0]}
        if figure in SEARCHED:
            size, how = SEARCHED[figure]
            search = self.searches.setdefault(figure, Search(self.row, size, how))
            return {figure: search.run() * (size * 8e-9 if figure == "udp1300" else 1e-3)}
        return {figure: idle_round_trip(self.row) if figure == "rtt" else loaded_round_trip(self.row)}

    def text(self) -> str:
        cells = [f"{number(self.median(name)):>{WIDTH}}" for name in FIGURES]
        return f"{self.row.label:<22}{''.join(cells)}{self.longest:>{WIDTH}}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def header() -> str:
    names = "".join(f"{name:>{WIDTH}}" for name, _ in FIGURES.values())
    units = "".join(f"{unit:>{WIDTH}}" for _, unit in FIGURES.values())
    return f"{'':<22}{names}{'frame':>{WIDTH}}\n{'':<22}{units}{'longest B':>{WIDTH}}"


# ---- What is to be reached -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Goal:
    offloads: bool
    figure: str
    than: str  # key of the row that the DTLS wire is held against
    least: float  # of theirs to ours if `lower`, else of ours to theirs
    text: str
    aim: float = 0.0
    lower: bool = False  # the smaller figure is the better one


GOALS = (
    Goal(True, "tcp1", "openvpn", 4, "TCP x1 >= 4x OpenVPN", 5),
    Goal(True, "tcp1", "vtun", 2.5, "TCP x1 >= 2.5x vtun", 3.5),
    Goal(True, "tcp1", "vxlan", 0.30, "TCP x1 >= 30 % of the VXLAN wire", 0.40),
    Goal(True, "udp128", "openvpn", 3, "UDP 128 B packets/s >= 3x OpenVPN"),
    Goal(True, "rtt", "openvpn", 1, "idle round trip <= OpenVPN's", lower=True),
    Goal(True, "cpu", "openvpn", 4, "CPU seconds per GB <= 1/4 of OpenVPN's", lower=True),
    Goal(False, "tcp1", "openvpn", 3, "TCP x1 >= 3x OpenVPN"),
)


def left_out(rounds: int, offloads: str | None, skipped: Iterable[str]) -> list[str]:
    """What the options keep from being measured: with any of it there is no PASS. `skipped`: rows and figures."""
    left = [f"rounds {rounds + 1} to {ROUNDS}"] if rounds < ROUNDS else []
    if offloads:
        left.append("offloads " + ("off" if offloads == "on" else "on"))
    return left + list(skipped)


def ratio(goal: Goal, ours: Result, theirs: Result) -> float:
    """The median of the rounds' ratios: rows of a round follow each other, so a machine that is slower for a while does
    not count."""
    pairs = zip(ours.values[goal.figure], theirs.values[goal.figure], strict=True)
    ratio_of: Callable[[float, float], float] = (lambda a, b: b / a) if goal.lower else (lambda a, b: a / b)
    return statistics.median(ratio_of(mine, other) for mine, other in pairs)


def verdict(offloads: bool, results: dict[str, Result]) -> tuple[list[str], bool, bool]:
    """Lines of PASS, FAIL and `----` (not measured); whether none failed, and whether all were measured."""
    lines, good, complete = [], True, True
    for goal in (goal for goal in GOALS if goal.offloads == offloads):
        ours, theirs = results.get("dtls"), results.get(goal.than)
        title = f"offloads {'on' if offloads else 'off'}: {goal.text}"
        if not ours or not theirs or not ours.values[goal.figure] or not theirs.values[goal.figure]:
            lines.append(f"----  {title}: not measured")
            complete = False
            continue
        found = ratio(goal, ours, theirs)
        aim = f", aim {goal.aim:g}" if goal.aim else ""
        lines.append(f"{'PASS' if found >= goal.least else 'FAIL'}  {title}: {found:.2f} (limit {goal.least:g}{aim})")
        good &= found >= goal.least
    return lines, good, complete
