"""When frames reached a guest's tap: what the network is answerable for. What happens behind it is QEMU's and the guest's.

A packet socket on each host takes the datagrams of `traffic run` to a guest as they are handed to a tap. Nothing is read
before the end: to look costs the hosts no time.
"""

import ctypes
import socket
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from banana_lab import Lab, LabError

ETH_P_ALL = 3
PACKET_OUTGOING = 4
SOL_PACKET, PACKET_STATISTICS = 263, 6
CLONE_NEWNET = 0x40000000
SO_RCVBUFFORCE, SO_ATTACH_FILTER, SO_TIMESTAMPNS = 33, 26, 35
BUFFER = 64 << 20  # bytes: some 40 000 datagrams, as each device on the way has its copy
# What libvirt calls a guest's tap; and what is said of a device that is gone by now, as the source's tap is. A wire's may
# be gone, too: a datagram counts where it was seen last, and the tap is behind the wire.
TAPS = ("vnet", "")
HEADERS = 14 + 20 + 8  # Ethernet, IPv4, UDP
HEADER = struct.Struct("<IIQ")  # tests/traffic/stream.h: magic, stream, sequence
MAGIC = 0x42547266
# Classic BPF: (code, jump if true, if false, constant). UDP over IPv4, of traffic's, on its way out of a device.
FILTER = ((0x28, 0, 0, 0xFFFFF004),  # packet type
          (0x15, 0, 7, PACKET_OUTGOING),
          (0x28, 0, 0, 12), (0x15, 0, 5, 0x0800), (0x30, 0, 0, 23), (0x15, 0, 3, 17),
          (0x20, 0, 0, HEADERS), (0x15, 0, 1, int.from_bytes(MAGIC.to_bytes(4, "little"), "big")),
          (0x06, 0, 0, HEADERS + HEADER.size), (0x06, 0, 0, 0))

_libc = ctypes.CDLL(None, use_errno=True)


def packet_socket(pid: int) -> socket.socket:
    """In the network namespace of a process. A thread changes there, as it does not come back."""
    made: list[socket.socket] = []

    def make() -> None:
        with open(f"/proc/{pid}/ns/net", "rb") as there:
            if _libc.setns(there.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        made.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not made:
        raise LabError(f"no packet socket in the network namespace of process {pid}")
    return made[0]


class TapWitness:
    """From its making on. close() it."""

    def __init__(self, lab: Lab) -> None:
        self._sockets = [self._listen(host.pid) for host in lab.hypervisors]

    @staticmethod
    def _listen(pid: int) -> socket.socket:
        taken = packet_socket(pid)
        program = b"".join(struct.pack("HBBI", *step) for step in FILTER)
        held = ctypes.create_string_buffer(program)
        taken.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(FILTER), ctypes.addressof(held)))
        taken.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        taken.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        taken.setblocking(False)
        return taken

    def longest_gap_ms(self, report: Mapping[str, Any]) -> float | None:
        """Between two datagrams, one after the other, that reached a tap and then the guest. `report`: traffic's, of the
        stream to the guest. None: it cannot be told, as the guest's device is no tap, a socket here has lost some, or
        the report does not name all that the guest has not got."""
        lost = {number for first, last in report["missing"] for number in range(first, last + 1)}
        arrived: dict[int, float] = {}
        now = time.time()
        for taken in self._sockets:
            for sequence, when in self._read(taken):
                # The kernel begins to stamp a moment after it was asked to; what has no stamp gets one as it is read.
                if sequence not in lost and when < now:
                    arrived[sequence] = max(when, arrived.get(sequence, when))
        times = sorted(arrived.values())
        if len(times) < 2 or len(lost) != report["lost"] or any(self._dropped(taken) for taken in self._sockets):
            return None
        return max(after - before for before, after in zip(times, times[1:])) * 1000

    @staticmethod
    def _read(taken: socket.socket) -> Iterable[tuple[int, float]]:
        while True:
            try:
                data, extra, _, address = taken.recvmsg(HEADERS + HEADER.size, 64)
            except BlockingIOError:
                return
            if address[0].rstrip("0123456789") not in TAPS or address[2] != PACKET_OUTGOING or \
                    len(data) < HEADERS + HEADER.size:
                continue
            magic, _, sequence = HEADER.unpack_from(data, HEADERS)
            if magic == MAGIC:  # the filter comes a moment after the socket
                seconds, nanoseconds = struct.unpack("qq", extra[0][2][:16])
                yield sequence, seconds + nanoseconds / 1e9

    @staticmethod
    def _dropped(taken: socket.socket) -> int:
        """Since it was asked last."""
        _, dropped = struct.unpack("II", taken.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        return dropped

    def close(self) -> None:
        for taken in self._sockets:
            taken.close()

    def __enter__(self) -> "TapWitness":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
