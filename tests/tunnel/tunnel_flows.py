"""What goes through a wire: numbered frames, TCP, and frames whose every byte is the test's own."""

import contextlib
import hashlib
import json
import pathlib
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from tunnel_world import inside, wait_until

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lab"))
import lab_image  # noqa: E402

if TYPE_CHECKING:
    from tunnel_rig import Host

ETHERTYPE = 0x88B5  # for local experiments
MARK = b"banana!!"
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
VNET_BYTES = 10


class Numbered:
    """Numbered frames, from one host's tap device to the other's."""

    def __init__(self, sender: "Host", receiver: "Host", connector: str = "0000002a", size: int = 64) -> None:
        device = f"bnd{connector}"
        self.sent = 0
        self.got: Counter[int] = Counter()  # by number
        self.behind = 0  # the most by which a number came after a greater one
        self._end = threading.Event()
        with inside(sender.name):
            self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._out.bind((device, 0))
            self._out.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 64 << 20)
        with inside(receiver.name):
            self._in = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._in.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
            self._in.bind((device, ETHERTYPE))
        self._in.settimeout(0.05)
        head = b"\xff" * 6 + bytes([0x52, 0x54, 0, 0, 0, sender.number]) + ETHERTYPE.to_bytes(2, "big") + MARK
        self._head, self._rest = head, bytes(max(0, size - len(head) - 4))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        last = -1
        while not self._end.is_set():
            try:
                frame = self._in.recv(2048)
            except TimeoutError:
                continue
            if frame[14:22] == MARK:
                number = int.from_bytes(frame[22:26], "big")
                self.behind = max(self.behind, last - number)
                last = max(last, number)
                self.got[number] += 1

    def send(self, count: int = 1, rate: float = 0) -> None:
        """`rate` a second, open loop; as fast as it goes if 0."""
        begin = time.monotonic()
        for i in range(count):
            while rate and time.monotonic() - begin < i / rate:
                time.sleep(0.0005)
            self._out.send(self._head + self.sent.to_bytes(4, "big") + self._rest)
            self.sent += 1

    def passes(self, seconds: float = 10) -> float:
        """Waits until frames arrive, sending one every 5 ms; how long it took, seconds."""
        begin, before = time.monotonic(), self.sent
        deadline = begin + seconds
        while not any(number >= before for number in list(self.got)):
            if time.monotonic() > deadline:
                raise AssertionError(f"no frame passed within {seconds:g} s")
            self.send()
            time.sleep(0.005)
        return time.monotonic() - begin

    def all_there(self, seconds: float = 10) -> bool:
        with contextlib.suppress(AssertionError):
            wait_until(lambda: len(self.got) == self.sent, seconds, "all frames")
        return len(self.got) == self.sent

    @property
    def twice(self) -> int:
        """Frames that were delivered more than once."""
        return sum(count > 1 for count in list(self.got.values()))

    def close(self) -> None:
        self._end.set()
        self._reader.join()
        self._in.close()
        self._out.close()


class Streams:
    """tests/traffic between the hosts' addresses on the wire: an open-loop stream each way, of so many a second."""

    def __init__(self, sender: "Host", receiver: "Host", rate: int) -> None:
        program = str(lab_image.traffic_program())
        with inside(receiver.name):
            self._serve = subprocess.Popen([program, "serve"], stdout=subprocess.PIPE, text=True)
        assert self._serve.stdout
        self._serve.stdout.readline()  # it listens
        with inside(sender.name):
            self._run = subprocess.Popen([program, "run", "--peer", f"10.10.0.{receiver.number}", "--rate", str(rate),
                                          "--json", "--until-eof"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True)
        assert self._run.stdout
        if self._run.stdout.readline() != "READY\n":
            self.close()
            raise AssertionError("traffic run did not begin")
        self.begun = time.monotonic()
        self.seconds = 0.0

    def finish(self) -> Any:
        """The report; see tests/traffic/accounting.h."""
        self.seconds = time.monotonic() - self.begun
        said = self._run.communicate(timeout=60)[0]
        return json.loads(said.splitlines()[-1])

    def close(self) -> None:
        for process in (self._run, self._serve):
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()


class Tcp:
    """One connection, h1's address 10.10.0.1 to h2's: a thread sends without end, another takes and counts."""

    def __init__(self, sender: "Host", receiver: "Host") -> None:
        with inside(receiver.name), socket.create_server((f"10.10.0.{receiver.number}", 0)) as listening:
            listening.settimeout(20)
            with inside(sender.name):
                self._out = socket.create_connection(listening.getsockname(), 20)
            self._in, _ = listening.accept()
        self.received = 0  # bytes
        self.broken = ""
        self.gap = 0.0  # the longest time without a byte since it was last set to 0
        self._end = threading.Event()
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        block = memoryview(_pattern())
        self._out.settimeout(0.2)
        at = 0
        while not self._end.is_set():
            try:
                at += self._out.send(block[at % PATTERN:at % PATTERN + (PATTERN >> 1)])
            except TimeoutError:
                continue
            except OSError:
                return

    def _receive(self) -> None:
        block, buffer = _pattern(), bytearray(PATTERN >> 1)
        self._in.settimeout(0.2)
        last = time.monotonic()
        while not self._end.is_set():
            try:
                got = self._in.recv_into(buffer)
            except TimeoutError:
                self.gap = max(self.gap, time.monotonic() - last)
                continue
            except OSError:
                return
            at = self.received % PATTERN
            if buffer[:got] != block[at:at + got]:
                self.broken = f"bytes from {self.received} on are not those that were sent"
            self.received += got
            self.gap, last = max(self.gap, time.monotonic() - last), time.monotonic()

    def rate(self, seconds: float) -> float:
        """Bytes a second, from now on."""
        begin, before = time.monotonic(), self.received
        self._end.wait(seconds)
        return (self.received - before) / (time.monotonic() - begin)

    def stall(self, bytes_more: int, seconds: float) -> float:
        """How long it takes for so many bytes more to arrive."""
        begin, wanted = time.monotonic(), self.received + bytes_more
        wait_until(lambda: self.received >= wanted, seconds, f"{bytes_more} bytes more by TCP")
        return time.monotonic() - begin

    def close(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()


PATTERN = 1 << 19


def _pattern() -> bytes:
    """Twice the same 512 KB, so that a slice from anywhere in the first is whole."""
    block = hashlib.shake_128(b"banana").digest(PATTERN)
    return block + block


class Queue:
    """In the place of a tap queue: what is written here is what tunneld reads, vnet header first, and the other way."""

    def __init__(self) -> None:
        self.socket, self.handed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.handed.setblocking(False)
        for one in (self.socket, self.handed):
            one.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 << 20)
        self.socket.settimeout(10)

    def write(self, frame: bytes, flags: int = 0, gso_type: int = 0, gso_size: int = 0, start: int = 0,
              offset: int = 0) -> None:
        self.socket.send(vnet(flags, gso_type, gso_size, start, offset) + frame)

    def read(self) -> tuple[bytes, bytes]:
        """The vnet header and the frame."""
        got = self.socket.recv(1 << 17)
        return got[:VNET_BYTES], got[VNET_BYTES:]

    def close(self) -> None:
        self.socket.close()
        self.handed.close()


def vnet(flags: int = 0, gso_type: int = 0, gso_size: int = 0, start: int = 0, offset: int = 0) -> bytes:
    """struct virtio_net_hdr, without a hint of the headers' length."""
    return struct.pack("<BBHHHH", flags, gso_type, 0, gso_size, start, offset)
