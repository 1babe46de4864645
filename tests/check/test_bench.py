"""bench-dtls gives a verdict of a whole run only."""

import os
import pathlib
import subprocess
import sys
import unittest

BENCH = pathlib.Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))
import bench_dtls_table as table  # noqa: E402


class LeftOutTest(unittest.TestCase):
    def test_whole(self) -> None:
        self.assertEqual(table.left_out(table.ROUNDS, None, []), [])
        self.assertEqual(table.left_out(table.ROUNDS + 2, None, []), [])

    def test_less(self) -> None:
        self.assertEqual(table.left_out(3, None, []), ["rounds 4 to 5"])
        self.assertEqual(table.left_out(5, "on", []), ["offloads off"])
        self.assertEqual(table.left_out(5, "off", ["tinc", "rtt"]), ["offloads on", "tinc", "rtt"])
