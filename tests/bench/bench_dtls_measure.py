"""One figure of one row of bench-dtls. Traffic goes from the guest's machine to the one on the uplink.

A UDP rate is searched for: the most that arrives with less than 1 % lost. What a path lets through when it is offered more
is no capacity: nobody could use it.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

from bench_peers import ECHO_PORT, Row, flow
from bench_world import BenchError, inside

TCP_WARM_MS, TCP_MS = 250, 900
UDP_WARM_MS, UDP_MS = 100, 400
LOSS = 0.01
FLUKE = 0.05  # a loss from here on is not one late wake-up of the machine
RESOLUTION = 1.08  # between a rate that is carried and one that is not
FIRST_RATE = 8000.0
MOST_RATE = 4e6
PORT = "5001"
TIMEOUT = 40.0


def traffic(row: Row, receiver: list[str], sender: list[str]) -> tuple[list[int], list[int]]:
    """Runs a receiver on the uplink's machine and, once it is ready, a sender on the guest's: what they print."""
    with subprocess.Popen(inside(row.ext, [flow(), *receiver]), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as receiving:
        assert receiving.stdout and receiving.stderr
        if receiving.stdout.readline().strip() != "READY":
            raise BenchError(f"{row.label}: the receiver did not start: {receiving.stderr.read().strip()}")
        try:
            sent = subprocess.run(inside(row.guest, [flow(), *sender]), check=False, timeout=TIMEOUT, text=True,
                                  capture_output=True)
            out, error = receiving.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired as late:
            receiving.kill()
            raise BenchError(f"{row.label}: {' '.join(sender)}: no end within {TIMEOUT:.0f} s") from late
    if sent.returncode or receiving.returncode:
        raise BenchError(f"{row.label}: {' '.join(sender)}: {(sent.stderr + error).strip()} ({row.tail()})")
    return [int(word) for word in out.split()], [int(word) for word in sent.stdout.split()]


# ---- TCP -------------------------------------------------------------------------------------------------------------

def tcp(row: Row, flows: int) -> tuple[float, float]:
    """Gbit/s, and how many seconds the machine's CPUs were busy for each GB that arrived."""
    got, _ = traffic(row, ["sink", PORT, str(flows), str(TCP_WARM_MS), str(TCP_MS)],
                     ["pour", PORT, str(flows), row.target, "30"])
    size, elapsed, busy = got
    if size == 0:
        raise BenchError(f"{row.label}: TCP x{flows}: nothing arrived ({row.tail()})")
    return size * 8 / elapsed, busy * 1000 / size


# ---- UDP -------------------------------------------------------------------------------------------------------------

@dataclass
class Offer:
    """What became of one offered rate."""

    loss: float
    received: float  # a second
    kept: bool  # the sender kept up with the rate

    @property
    def good(self) -> bool:
        return self.loss < LOSS and self.kept

    @property
    def clear(self) -> bool:
        """No second try would make it good."""
        return self.loss >= FLUKE or not self.kept


def offer(row: Row, size: int, rate: float, how: str) -> Offer:
    got, sent = traffic(row, ["count", PORT],
                        ["pace", PORT, row.target, str(size), f"{rate:.0f}", str(UDP_WARM_MS), str(UDP_MS),
                         how])
    (arrived, arriving), (offered, elapsed) = got, sent
    if offered == 0:
        raise BenchError(f"{row.label}: UDP {size} B at {rate:.0f}/s: nothing was sent")
    # What waits in queues at the end takes longer to arrive than it took to send: that is no capacity either.
    return Offer(1 - arrived / offered, arrived * 1e9 / max(elapsed, arriving), offered >= 0.97 * rate * elapsed / 1e9)


@dataclass
class Search:
    """The rate of one row and size; remembers where it was, as the next round's search starts there."""

    row: Row
    size: int
    how: str = "plain"  # or "gso": the sender hands over many at once
    last: float = 0.0
    received: float = field(default=0.0, init=False)  # at the highest rate that was carried

    def carried(self, rate: float) -> bool:
        """Two tries of at most three decide: near its limit a path is lucky at times, as a machine is unlucky."""
        good: list[float] = []
        bad = 0
        while len(good) < 2 and bad < 2:
            found = offer(self.row, self.size, rate, self.how)
            if found.good:
                good.append(found.received)
            else:
                bad += 2 if found.clear else 1
        if len(good) < 2:
            return False
        self.received = max(self.received, sum(good) / 2)
        return True

    def run(self) -> float:
        """Packets a second."""
        self.received = 0.0
        low, high = bracket(self.carried, self.last or FIRST_RATE, 1.15 if self.last else 2.0)
        while high > low * RESOLUTION:
            middle = (low * high) ** 0.5
            if self.carried(middle):
                low = middle
            else:
                high = middle
        self.last = low
        return self.received


def bracket(carried: Callable[[float], bool], start: float, step: float) -> tuple[float, float]:
    """A rate that is carried and one that is not, some steps apart, found from `start` by steps that grow."""
    rate, up = start, carried(start)
    while True:
        following = rate * step if up else rate / step
        if following > MOST_RATE or following < 1:
            raise BenchError(f"no end of the search at {rate:.0f} packets/s")
        if carried(following) != up:
            return (rate, following) if up else (following, rate)
        rate, step = following, step ** 1.5 if step < 1.5 else step


# ---- Round trips -----------------------------------------------------------------------------------------------------

def idle_round_trip(row: Row) -> float:
    """The median, in microseconds, of 300 at one a millisecond."""
    return probe(row, 300, 1000)


def loaded_round_trip(row: Row) -> float:
    """The same beside one TCP flow that takes all it can."""
    with subprocess.Popen(inside(row.ext, [flow(), "sink", PORT, "1", "0", "60000"]), stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as sink:
        assert sink.stdout
        sink.stdout.readline()
        with subprocess.Popen(inside(row.guest, [flow(), "pour", PORT, "1", row.target, "60"]),
                              stderr=subprocess.DEVNULL) as pour:
            try:
                probe(row, 30, 5000)  # the flow finds its speed
                return probe(row, 100, 5000)
            finally:
                pour.kill()
                sink.kill()


def probe(row: Row, count: int, interval_us: int) -> float:
    words = inside(row.guest, [flow(), "probe", ECHO_PORT, row.target, str(count), str(interval_us)])
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=TIMEOUT + count)
    if done.returncode:
        raise BenchError(f"{row.label}: round trips: {done.stderr.strip()} ({row.tail()})")
    return int(done.stdout.split()[0]) / 1000
