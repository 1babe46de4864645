"""How many tests passed and failed, from what a test program printed. A program that ends badly without saying so, or
says nothing, has failed by one."""

import re
from dataclasses import dataclass

DOCTEST = re.compile(r"test cases:\s*(\d+)\s*\|\s*(\d+) passed\s*\|\s*(\d+) failed(?:\s*\|\s*(\d+) skipped)?")
RAN = re.compile(r"^Ran (\d+) tests? in ", re.MULTILINE)
FUZZED = re.compile(r"^Done (\d+) runs? in \d+ second", re.MULTILINE)
FUZZED_LEAST = 1000  # runs; fewer, and it has tested nothing
ENDED = re.compile(r"^(?:OK|FAILED)(?: \((.*)\))?$", re.MULTILINE)


@dataclass
class Counts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other: "Counts") -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed" + (f", {self.skipped} skipped" if self.skipped else "")


def _honest(counts: Counts, status: int) -> Counts:
    if counts.failed == 0 and (status != 0 or counts.passed == 0):
        counts.failed = 1
    return counts


def doctest(output: str, status: int) -> Counts:
    found = DOCTEST.findall(output)
    counts = Counts()
    for _, passed, failed, _ in found:
        counts.add(Counts(int(passed), int(failed)))
    return _honest(counts, status)


def unittest(output: str, status: int) -> Counts:
    ran, ended = RAN.search(output), ENDED.findall(output)
    if not ran or not ended:
        return _honest(Counts(), status or 1)
    words = dict(re.findall(r"([a-z][a-z ]*)=(\d+)", ended[-1]))
    failed = sum(int(words.get(name, 0)) for name in ("failures", "errors", "unexpected successes"))
    skipped = int(words.get("skipped", 0))
    counts = Counts(max(0, int(ran.group(1)) - failed - skipped), failed, skipped)
    if skipped and not failed and status == 0:
        return counts  # all of a file may be skipped
    return _honest(counts, status)


def fuzzer(output: str, status: int) -> Counts:
    """libFuzzer's: one test, which has passed if it ran to its end, often enough."""
    ran = FUZZED.search(output)
    done = status == 0 and ran is not None and int(ran.group(1)) >= FUZZED_LEAST
    return Counts(1, 0) if done else Counts(0, 1)
