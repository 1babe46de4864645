"""Segmentation offloads of the underlay, and proof of what they do: the longest frame that was seen on it."""

import ctypes
import select
import socket
import struct
import threading

from bench_dtls_measure import tcp
from bench_peers import Row
from bench_world import inside, run, visiting

FEATURES = ("tso", "gso", "gro", "tx-udp-segmentation")
FRAME_MAX = 1514  # an Ethernet header and 1 500
ETH_P_ALL = 3
SOL_PACKET, PACKET_STATISTICS, SO_ATTACH_FILTER = 263, 6, 26
RING = 8 << 20


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def set_offloads(row: Row, on: bool) -> None:
    for host in (row.host_a, row.host_b):
        words = [word for feature in FEATURES for word in (feature, "on" if on else "off")]
        # gro stays as the kernel has it for such devices, off: there is no physical card to hand over parts.
        words = words if not on else [*words, "gro", "off"]
        run(inside(host, ["ethtool", "-K", "eth0", *words]))


def _attach(capture: socket.socket, instructions: list[tuple[int, int, int, int]]) -> None:
    array = (_Instruction * len(instructions))(*instructions)
    capture.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(_Program(len(instructions), ctypes.addressof(array))))


def _capture(host: str, filtered: bool) -> socket.socket:
    """A socket that sees the frames of a host's underlay device, both ways; `filtered`: those above FRAME_MAX alone."""
    with visiting(host):
        capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        if filtered:  # load the length; above FRAME_MAX: accept 1 byte of it, else nothing
            _attach(capture, [(0x80, 0, 0, 0), (0x25, 0, 1, FRAME_MAX), (0x06, 0, 0, 1), (0x06, 0, 0, 0)])
        capture.setsockopt(socket.SOL_SOCKET, 33, RING)  # SO_RCVBUFFORCE
        capture.bind(("eth0", ETH_P_ALL))
    return capture


def longest_frame(row: Row) -> tuple[int, int]:
    """While one TCP flow runs: the longest of those frames on the underlay that a reader kept up with, and how many of
    all were longer than an MTU's, which the kernel counts."""
    counters = [_capture(host, True) for host in (row.host_a, row.host_b)]
    reader = _capture(row.host_a, False)
    done, longest = threading.Event(), 0

    def read() -> None:
        nonlocal longest
        while not done.is_set():
            if select.select([reader], [], [], 0.05)[0]:
                longest = max(longest, reader.recv_into(bytearray(1), 1, socket.MSG_TRUNC))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        tcp(row, 1)
    finally:
        done.set()
        thread.join()
        over = sum(struct.unpack("II", counter.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[0] for counter in counters)
        for capture in (*counters, reader):
            capture.close()
    return longest, over
