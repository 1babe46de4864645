"""How fast wires are set up: from the request to the first frame delivered through each.

  pool  w0000 ... ----- hv2 w0000 ... (adopted) ~ VXLAN ~ hv1 Corms w0, w1, ... uplinks up0, up1, ... ----- sink up0, ...

One client asks hv2's bananad for wires over its control socket, `WINDOW` requests under way. When one is answered it
sends a frame into that Spike's far end; a wire counts when that frame has come out at the Corm's uplink. The uplink's
machine is a static entry of the bridge, so that a frame goes there and is not flooded to hundreds of ports.
"""

import select
import socket
import statistics
import struct
import time
from dataclasses import dataclass

from bench_world import BenchError, Control, Daemon, cable, inside, ip, make_namespace, run, visiting

ETHERTYPE = 0x88B5  # for local experiments
BURST = 200  # wires a measurement
PER_CORM = 600
WINDOW = 48  # bananad serves 64 requests of a connection at once
SINK_MAC = bytes.fromhex("020000000099")
FRAME_DEADLINE = 10.0
LIMIT = 500.0  # wires a second
SLOWER = 1.10  # "no slower per wire at 2 000": within what one run differs from the next


@dataclass
class Level:
    existing: int
    rates: list[float]  # wires a second, one a measurement
    latencies: list[float]  # seconds from request to frame, medians
    cpu: list[tuple[float, float]]  # seconds a wire of hv1's and hv2's daemon

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def text(self) -> str:
        one, two = (statistics.median(side) * 1000 for side in zip(*self.cpu, strict=True))
        return (f"{self.existing:>8} {self.rate:8.0f} {min(self.rates):8.0f} {max(self.rates):8.0f} "
                f"{statistics.median(self.latencies) * 1000:10.1f} {one:8.2f} {two:8.2f}")


HEADER = (f"{'existing':>8} {'wires/s':>8} {'least':>8} {'most':>8} {'median ms':>10} {'hv1 ms':>8} {'hv2 ms':>8}"
          "   (ms: daemon's CPU time a wire)")


class Wires:
    def __init__(self, uplink_host: Daemon, guest_host: Daemon, most: int) -> None:
        self._hosts = (uplink_host, guest_host)
        self._total = most + BURST
        self._lay_out()
        self._control = guest_host.control()
        with visiting("pool"):
            self._sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._devices = [socket.if_nametoindex(f"w{number:04}") for number in range(self._total)]
        with visiting("sink"):
            self._receiver = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETHERTYPE))
            self._receiver.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
            self._receiver.setblocking(False)
        self._connected = 0

    def _lay_out(self) -> None:
        for name in ("pool", "sink"):
            make_namespace(name)
        self._corms = -(-self._total // PER_CORM)
        control = self._hosts[0].control()
        for number in range(self._corms):
            cable("hv1", f"up{number}", "sink", f"up{number}")
            control.call("corm.create", name=f"w{number}", kind="uplink", device=f"up{number}")
            run(inside("hv1", ["bridge", "fdb", "replace", SINK_MAC.hex(":"), "dev", f"up{number}", "master", "static"]))
        control.close()
        names = [f"w{number:04}" for number in range(self._total)]
        ip("hv2", *(f"link add {name} type veth peer name {name} netns pool" for name in names))
        ip("hv2", *(f"link set {name} up" for name in names))
        ip("pool", *(f"link set {name} up" for name in names))
        control = self._hosts[1].control()
        self._pipeline(control, [("spike.adopt", {"name": name, "device": name}) for name in names])
        control.close()

    @staticmethod
    def _pipeline(control: Control, requests: list[tuple[str, dict]]) -> None:
        sent = done = 0
        while done < len(requests):
            while sent < len(requests) and sent - done < WINDOW:
                control.send(requests[sent][0], **requests[sent][1])
                sent += 1
            done += len(control.receive())

    def _send_frame(self, number: int) -> None:
        frame = SINK_MAC + struct.pack("!6sHI", b"\x02\x01" + struct.pack("!I", number), ETHERTYPE, number)
        with_padding = frame.ljust(60, b"\0")
        # sendto() takes names, and looks each up: by index is what a program would do, but Python has no way.
        self._sender.sendto(with_padding, (f"w{number:04}", ETHERTYPE))

    def _delivered(self) -> list[int]:
        numbers = []
        try:
            while True:
                numbers.append(struct.unpack("!I", self._receiver.recv(64)[:4])[0])
        except BlockingIOError:
            return numbers

    def set_up(self, count: int) -> tuple[float, list[float]]:
        """Sets up the next `count` wires: the seconds it took, and each wire's own from its request to its frame."""
        first, last = self._connected, self._connected + count
        requested: dict[int, float] = {}
        asked: dict[int, int] = {}  # request -> wire
        latencies: list[float] = []
        answered = 0
        began = progress = time.monotonic()
        while len(latencies) < count:
            while len(requested) < count and len(requested) - answered < WINDOW:
                number = first + len(requested)
                requested[number] = time.monotonic()
                asked[self._control.send("connect", spike=f"w{number:04}", corm=f"w{number // PER_CORM}")] = number
            waiting = [self._control, self._receiver] if answered < count else [self._receiver]
            ready, _, _ = select.select(waiting, [], [], 1.0)
            for request, _ in self._control.receive() if self._control in ready else ():
                answered += 1
                self._send_frame(asked.pop(request))
            for number in self._delivered():
                if not first <= number < last:
                    raise BenchError(f"a frame of wire {number} came out, which was not asked for")
                progress = time.monotonic()
                latencies.append(progress - requested[number])
            if time.monotonic() - progress > FRAME_DEADLINE:
                raise BenchError(f"{count - len(latencies)} of {count} wires delivered no frame")
        self._connected = last
        return progress - began, latencies

    def tear_down(self, count: int) -> None:
        """Disconnects the last `count` wires."""
        names = [f"w{number:04}" for number in range(self._connected - count, self._connected)]
        self._pipeline(self._control, [("disconnect", {"spike": name}) for name in names])
        self._connected -= count

    def measure(self, existing: int, rounds: int) -> Level:
        if existing > self._connected:
            self.set_up(existing - self._connected)
        level = Level(existing, [], [], [])
        for _ in range(rounds):
            before = [host.cpu_seconds() for host in self._hosts]
            seconds, latencies = self.set_up(BURST)
            after = [host.cpu_seconds() for host in self._hosts]
            level.rates.append(BURST / seconds)
            level.latencies.append(statistics.median(latencies))
            level.cpu.append(((after[0] - before[0]) / BURST, (after[1] - before[1]) / BURST))
            self.tear_down(BURST)
        return level


def verdict(levels: list[Level]) -> list[tuple[str, bool]]:
    slowest, base = min(level.rate for level in levels), levels[0].rate
    return [(f"at least {LIMIT:.0f} wires/s: {slowest:.0f}", slowest >= LIMIT),
            (f"no slower per wire at {levels[-1].existing} than at {levels[0].existing}: "
             f"{base / levels[-1].rate:.2f} times the time", base / levels[-1].rate <= SLOWER)]
