"""What ./check and ./quickstart judge by: counts, limits, what is left behind, and programs that are cut short."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
from dataclasses import replace

import build
import counts
import leftovers
import steps
import verdict
from counts import Counts

HERE = pathlib.Path(__file__).resolve().parent


class CountsTest(unittest.TestCase):
    def test_doctest(self) -> None:
        said = "[doctest] test cases:  12 |  11 passed |   1 failed | 3 skipped\n" \
            "[doctest] assertions: 9 | 9 passed | 0 failed |"
        self.assertEqual(counts.doctest(said, 1), Counts(11, 1))
        fine = "[doctest] test cases: 12 | 12 passed | 0 failed | 0 skipped"
        self.assertEqual(counts.doctest(fine, 0), Counts(12, 0))
        for output, status in ((fine, 1), (fine, 139), ("", 0), ("Segmentation fault", 139),
                               ("[doctest] test cases: 0 | 0 passed | 0 failed | 9 skipped", 0)):
            self.assertEqual(counts.doctest(output, status).failed, 1, output)

    def test_fuzzer(self) -> None:
        for said, status, passed in (("#2\tINITED\nDone 48211 runs in 31 second(s)\nstat::x: 1", 0, True),
                                     ("Done 48211 runs in 31 second(s)", 77, False),
                                     ("Done 999 runs in 31 second(s)", 0, False),
                                     ("SUMMARY: libFuzzer: deadly signal", 77, False), ("", 0, False)):
            expected = Counts(1, 0) if passed else Counts(0, 1)
            self.assertEqual(counts.fuzzer(said, status), expected, said)

    def test_unittest(self) -> None:
        for said, status, expected in (
                ("Ran 5 tests in 1.2s\n\nOK\n", 0, Counts(5, 0)),
                ("Ran 1 test in 1.2s\n\nOK (skipped=1)\n", 0, Counts(0, 0, 1)),
                ("Ran 5 tests in 1.2s\n\nFAILED (failures=1, errors=2, skipped=1)\n", 1, Counts(1, 3, 1)),
                ("Ran 0 tests in 0.1s\n\nFAILED (errors=1)\n", 1, Counts(0, 1)),
                ("Ran 5 tests in 1.2s\n\nOK\n", -9, Counts(5, 1)),
                ("Ran 0 tests in 0.0s\n\nOK\n", 0, Counts(0, 1)),
                ("test_a ... ", 124, Counts(0, 1)), ("", 0, Counts(0, 1))):
            self.assertEqual(counts.unittest(said, status), expected, said)


class BuildTest(unittest.TestCase):
    def test_a_source_directory_that_is_configured(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            top = pathlib.Path(directory)
            build.refuse_configured(top)
            (top / "config.status").touch()
            with self.assertRaisesRegex(steps.StepFailed, f"{top} was configured in place.*distclean"):
                build.refuse_configured(top)


class VerdictTest(unittest.TestCase):
    # The guest's clock stands still; the gap from the guest holds QEMU's stop, and both ways the guest is 8 ms late.
    BANANA = verdict.Row("banana", "hv1>hv2", "native", "vxlan", 80.0, 80.0, 3, 0, 10.0, 90.0, 8.0, None, True)
    PLAIN = verdict.Row("plain", "hv1>hv2", "bridge", "bridge", 60.0, 60.0, 60, 0, 9.0, 71.0, 8.0, None, True)

    def broken(self, **changes: object) -> str:
        """One that differs among three."""
        rows = [replace(self.BANANA, **changes), self.BANANA, self.BANANA, self.PLAIN]  # type: ignore[arg-type]
        return "; ".join(verdict.broken_limits(rows))

    def test_limits_hold(self) -> None:
        self.assertEqual(self.broken(), "")
        self.assertEqual(self.broken(lost_to=20, lost_from=20), "")
        self.assertEqual(self.broken(stopped=250.0, clock=250.0, gap_from=265.0), "", "QEMU's own stop is not ours")
        self.assertEqual(self.broken(late=200.0, gap_to=208.0, gap_from=285.0), "", "nor is a slow guest")
        self.assertEqual(self.broken(gap_to=29.0, gap_from=111.0), "")
        back = replace(self.BANANA, path="hv2>hv1", before="vxlan", after="native")
        self.assertEqual(verdict.broken_limits([back, self.PLAIN]), [])

    def test_what_waits_at_the_tap_is_not_the_networks(self) -> None:
        self.assertEqual(self.broken(gap_to=90.0, tap=9.0), "")
        self.assertIn("21.1 ms", self.broken(gap_to=90.0, tap=21.1))
        self.assertEqual(self.broken(gap_to=29.0, tap=82.0), "", "it does not add to what the guest saw")

    def test_limits_broken(self) -> None:
        for changes, words in (({"lost_to": 21}, "21 frames lost to"), ({"lost_from": 21}, "21 frames lost from"),
                               ({"gap_to": 29.1}, "gap to the guest neither QEMU nor the guest accounts for 21.1 ms"),
                               ({"gap_from": 111.1}, "gap from the guest neither QEMU nor the guest accounts for 23.1 ms"),
                               ({"stopped": None}, "no STOP"), ({"kept": False}, "did not survive"),
                               ({"after": "native"}, "wire native -> native"),
                               ({"before": "vxlan"}, "wire vxlan -> vxlan"),
                               ({"before": "-", "after": "-"}, "wire - -> -")):
            self.assertIn(words, self.broken(**changes))
        self.assertIn("not measured", verdict.broken_limits([self.BANANA])[0])
        self.assertIn("not measured", verdict.broken_limits([])[0])

    def test_nothing_hides_in_a_late_guest(self) -> None:
        for late, wanted in ((replace(self.BANANA, late=100.0, gap_to=29.2), "gaps to the guest"),
                             (replace(self.BANANA, late=100.0, gap_from=111.2), "gaps from the guest")):
            self.assertIn(wanted, "; ".join(verdict.broken_limits([late, late, self.BANANA, self.PLAIN])))
            self.assertEqual(verdict.broken_limits([late, self.BANANA, self.BANANA, self.PLAIN]), [])

    def test_measured_again(self) -> None:
        """Medians are of all; nothing else of the first is made good."""
        late, on_time = replace(self.BANANA, late=100.0, gap_to=29.2), self.BANANA
        first = [late, late, self.PLAIN]
        self.assertTrue(all(verdict.OF_MEDIANS.match(text) for text in verdict.broken_limits(first)))
        self.assertEqual(len(verdict.broken_limits(first)), 1)
        self.assertEqual(verdict.broken_limits(first, [on_time] * 3 + [self.PLAIN]), [])
        self.assertEqual(verdict.broken_limits(first, [late, self.PLAIN]), verdict.broken_limits(first))
        slow = replace(self.PLAIN, gap_to=100.0, gap_from=150.0)
        unexplained = replace(self.BANANA, gap_to=29.1)
        self.assertIn("hv1>hv2: of a gap to",
                      "; ".join(verdict.broken_limits([unexplained, self.PLAIN], [on_time, slow])))
        self.assertEqual(verdict.broken_limits([on_time, self.PLAIN], [unexplained, slow]), [])

    def test_words_of_gaps(self) -> None:
        """test_quickstart tolerates these, and no others."""
        late = replace(self.BANANA, late=100.0, gap_to=29.2, gap_from=111.2)
        for rows, gaps in (([replace(self.BANANA, gap_to=29.1, gap_from=111.1), self.PLAIN], 4),
                           ([late, late, self.PLAIN], 2),
                           ([replace(self.BANANA, lost_to=21, lost_from=21, kept=False, gap_from=9.0, stopped=None), self.PLAIN],
                            0),
                           ([replace(self.BANANA, before="vxlan", gap_to=0, gap_from=0), self.PLAIN], 0), ([], 0)):
            broken = verdict.broken_limits(rows)
            self.assertTrue(broken)
            self.assertEqual(len([text for text in broken if verdict.OF_GAPS.match(text)]), gaps, broken)

    def test_a_running_clock_leaves_the_stop_in_the_gap(self) -> None:
        self.assertEqual(self.broken(clock=0.0, gap_to=95.0), "")
        self.assertIn("gap to", self.broken(clock=0.0, gap_to=130.0))

    def test_table_has_the_raw_gaps(self) -> None:
        table = verdict.table([self.BANANA, self.PLAIN])
        for word in ("native -> vxlan", "90.0", "71.0", "80.0", "60.0", "gap at"):
            self.assertIn(word, table)


class LeftoversTest(unittest.TestCase):
    def inside(self, change: str) -> list[str]:
        """What is found after a change made in network and mount namespaces of its own."""
        code = textwrap.dedent("""\
            import subprocess, sys
            import leftovers
            made = "mount -t tmpfs none /run && mkdir -p /run/banana-lab && ip link set lo up"
            subprocess.run(made, shell=True, check=True)
            before = leftovers.snapshot()
            subprocess.run(sys.argv[1], shell=True, check=True)
            print("\\n".join(leftovers.left(before, "nobody")))
            """)
        done = subprocess.run(["unshare", "--net", "--mount", sys.executable, "-B", "-c", code, change], cwd=HERE,
                              capture_output=True, text=True, check=True)
        return done.stdout.split("\n")[:-1]

    def test_a_quiet_machine(self) -> None:
        self.assertEqual(self.inside("true"), [""])

    def test_each_kind_is_seen(self) -> None:
        for change, expected in (
                ("ip link add bnx00000001 type bridge", "link left: bnx00000001"),
                ("ip link set lo down", "address gone: lo"),
                ("ip route add 192.0.2.0/24 dev lo", "route left: 192.0.2.0/24"),
                ("ip address add 192.0.2.1/24 dev lo", "address left: lo"),
                ("tc qdisc add dev lo clsact", "qdisc left: qdisc clsact"),
                ("mkdir /run/netns && touch /run/netns/x", "file left: /run/netns/x"),
                ("mkdir /run/mnt && mount -t tmpfs none /run/mnt", "mount left: /run/mnt (tmpfs)"),
                ("mkdir /run/banana", "file left: /run/banana"),
                ("mkdir /run/banana-lab/dead", "lab left: /run/banana-lab/dead")):
            found = self.inside(change)
            self.assertTrue(any(line.startswith(expected) for line in found), (change, found))

    def test_marked_processes(self) -> None:
        mark = f"test{os.getpid()}"
        self.assertEqual(leftovers.marked(mark), {})
        with subprocess.Popen(["sleep", "600"], env={leftovers.MARK: mark}) as sleeper:
            try:
                deadline = time.monotonic() + 10
                while leftovers.marked(mark) != {sleeper.pid: "sleep 600 "} and time.monotonic() < deadline:
                    time.sleep(0.01)
                self.assertEqual(leftovers.marked(mark), {sleeper.pid: "sleep 600 "})
            finally:
                sleeper.kill()


class RunTest(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="banana-run-")
        self.addCleanup(scratch.cleanup)
        self.scratch = pathlib.Path(scratch.name)
        self.log = self.scratch / "log" / "log"
        self.mark = f"run{os.getpid()}{self.id()}"

    def wait_gone(self) -> None:
        deadline = time.monotonic() + 20
        while leftovers.marked(self.mark) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(leftovers.marked(self.mark), {})

    def test_status_and_output(self) -> None:
        self.assertEqual(steps.run(["sh", "-c", "echo out; echo err >&2; exit 7"], self.log, 30), 7)
        self.assertIn("out\nerr\n", self.log.read_text())
        with self.assertRaisesRegex(steps.StepFailed, "false ended with status 1"):
            steps.must(["false"], self.log, 30)

    def test_too_long_and_nothing_left_of_it(self) -> None:
        """Nor of what it started in a session of its own."""
        status = steps.run(["sh", "-c", "setsid sleep 601 & sleep 602"], self.log, 2,
                           environment={leftovers.MARK: self.mark})
        self.assertEqual(status, 124)
        self.assertIn("no end within 2 s", self.log.read_text())
        self.wait_gone()

    def test_killed_runner_leaves_nothing(self) -> None:
        code = ("import pathlib, sys, steps; steps.end_on_signals()\n"
                "steps.run(['sh', '-c', 'setsid sleep 603 & sleep 604'], pathlib.Path(sys.argv[1]), 600)")
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            runner = subprocess.Popen([sys.executable, "-B", "-c", code, str(self.log)], cwd=HERE,
                                      stderr=subprocess.DEVNULL, env={**os.environ, leftovers.MARK: self.mark})
            deadline = time.monotonic() + 20
            # Two, and the shell's.
            while sum("sleep" in command for command in leftovers.marked(self.mark).values()) < 3:
                self.assertLess(time.monotonic(), deadline, leftovers.marked(self.mark))
                time.sleep(0.02)
            runner.send_signal(number)
            self.assertNotEqual(runner.wait(20), 0)
            self.wait_gone()


if __name__ == "__main__":
    unittest.main(verbosity=2)
