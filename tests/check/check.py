"""Builds and runs all tests, and counts them. Run by ./check, which has installed the packages.

Files of the lab's tests run two at a time, since they mostly wait, and the tunnel's three; but those that time what they
measure run alone: the guests are emulated, and two cores are few. When all is tested, the unit and namespace tests run
once, with sanitizers; what they are built with is built beside the static checks and the first of the lab's tests, from
the CPU time that is left there, by another compiler, and in another order (see unity.mk). Nothing is built any more when
something is timed.
"""

import contextlib
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import counts
import leftovers
import static
from build import PROGRAMS, Build, configure, guest_image
from counts import Counts
from steps import TOP, Program, Steps, StepFailed, end_on_signals, forget, must_finish, show, tail

LAB_FILE_LIMIT = 600  # seconds for one file of the lab's tests
LAB_AT_ONCE = 2
LAB_ALONE = ("test_dtls_timed", "test_migration", "test_quickstart")
TUNNEL_PROGRAMS = ("banana-tunneld", "relay", "flood")  # tests/tunnel
TUNNEL_ALONE = ("test_tunnel_control", "test_tunnel_flood", "test_tunnel_frames")
TUNNEL_FILE_LIMIT = 600
SANITIZED_COMPILER = "clang++-16"  # takes two thirds of g++'s time; and warns of other things
SANITIZED_PROGRAMS = ("unit_tests", "netns_tests", "banana-tunneld")
# Frames, descriptors, messages, datagrams, hosts and certificates that are not as they should be.
TUNNEL_HOSTILE = ("test_tunnel_frames.FromTap", "test_tunnel_control.Nonsense", "test_tunnel_path.Damaged",
                  "test_tunnel_strangers.Certificates", "test_tunnel_strangers.Wires")
FUZZ_TARGETS = ("fuzz_records", "fuzz_frames")
FUZZ_SECONDS = 30  # each
PYTHON = ("/usr/bin/python3", "-B", "-m", "unittest", "-v")
SANITIZED = {"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


@dataclass(frozen=True)
class Test:
    title: str
    log: pathlib.Path
    words: Sequence[object]
    judge: Callable[[str, int], Counts]
    limit: float  # seconds
    options: Mapping[str, Any] = field(default_factory=dict)  # Program's


class Check:
    def __init__(self, part: str) -> None:
        self.part = part
        self.steps = Steps()
        self.total = Counts()
        base = pathlib.Path(os.environ.get("BANANA_CHECK_BUILD") or TOP)
        self.build = Build(base / "build-check", ("--enable-werror",))
        self.sanitized = Build(base / "build-sanitized", ("--enable-werror", "--enable-sanitizers"), "-O0",
                               SANITIZED_COMPILER, reversed=True)

    def wants(self, part: str) -> bool:
        return self.part in (part, "all")

    # ---- one step ------------------------------------------------------------------------------------------------

    def do(self, title: str, action: Callable[[], None]) -> bool:
        """A step that is not a test by itself, yet fails the whole if it fails."""
        try:
            with self.steps.step(title):
                action()
        except (StepFailed, OSError) as error:
            show(error)
            self.total.add(Counts(0, 1))
            return False
        return True

    def static(self, title: str, action: Callable[[], None]) -> None:
        if self.do(title, action):
            self.total.add(Counts(1, 0))

    def count(self, log: pathlib.Path, found: Counts) -> None:
        if found.failed:
            print(f"---- the end of {log}\n{tail(log, 150)}\n----", flush=True)
        self.total.add(found)

    def side_by_side(self, tests: Sequence[Test], at_once: int) -> None:
        waiting, running = list(tests), []
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    test = waiting.pop(0)
                    test.log.unlink(missing_ok=True)
                    running.append((test, Program(test.words, test.log, test.limit, **test.options)))
                for test, program in list(running):
                    status = program.wait(0.1)
                    if status is not None:
                        program.end()
                        running.remove((test, program))
                        found = test.judge(test.log.read_text(errors="replace"), status)
                        self.steps.say(test.title, str(found), program.seconds)
                        self.count(test.log, found)
        finally:
            for _, program in running:
                program.end()

    # ---- parts ---------------------------------------------------------------------------------------------------

    def static_checks(self) -> None:
        self.static("format: clang-format", lambda: static.formatted(self.build))
        self.static("cppcheck on src, qmp, libvirt-hooks", lambda: static.analysed(self.build))
        self.static("shell scripts: shellcheck", lambda: static.shell(self.build))
        self.static("units: systemd-analyze verify", lambda: static.units(self.build))
        self.static("XML examples against the schemas", lambda: static.xml_examples(self.build))
        self.side_by_side([self.unittest(path, 600) for path in sorted((TOP / "tests/check").glob("test_*.py"))], 1)

    def compiled(self, build: Build, name: str, limit: float) -> Test:
        sanitized = build is self.sanitized
        return Test(name.replace("_", " ") + (", sanitized" if sanitized else ""), build.log(name),
                    [build.directory / name], counts.doctest, limit,
                    {"environment": {"srcdir": str(TOP), **(SANITIZED if sanitized else {})}})

    def unittest(self, path: pathlib.Path, limit: float, **options: Any) -> Test:
        return Test(str(path.relative_to(TOP)), self.build.log(path.stem), [*PYTHON, path.stem], counts.unittest, limit,
                    {"directory": path.parent, **options})

    def fuzzed(self) -> list[Test]:
        if not self.do("build fuzz targets", lambda: self.build.make("fuzz")):
            return []
        return [self.fuzz(name) for name in FUZZ_TARGETS]

    def fuzz(self, name: str) -> Test:
        """What it finds is kept in the log's folder: `fuzz_... FILE` runs it again."""
        log = self.build.log(name)
        words = [self.build.directory / name, f"-max_total_time={FUZZ_SECONDS}", "-timeout=10", "-max_len=4096",
                 "-print_final_stats=1", f"-artifact_prefix={log.parent / name}-"]
        return Test(name.replace("_", " "), log, words, counts.fuzzer, FUZZ_SECONDS + 120)

    def tunnel_tests(self, alone: bool) -> list[Test]:
        files = sorted((TOP / "tests/tunnel").glob("test_*.py"))
        return [self.unittest(path, TUNNEL_FILE_LIMIT) for path in files if (path.stem in TUNNEL_ALONE) == alone]

    def tunnel_sanitized(self) -> Test:
        program = self.sanitized.directory / "banana-tunneld"
        return Test("tests/tunnel, hostile, sanitized", self.sanitized.log("tunnel_hostile"),
                    [*PYTHON, *TUNNEL_HOSTILE], counts.unittest, TUNNEL_FILE_LIMIT,
                    {"directory": TOP / "tests/tunnel", "environment": {**SANITIZED, "BANANA_TUNNELD": str(program)}})

    def lab_tests(self, alone: bool) -> None:
        files = sorted((TOP / "tests/lab").glob("test_*.py"))
        tests = [self.unittest(path, LAB_FILE_LIMIT, contained=False) for path in files
                 if (path.stem in LAB_ALONE) == alone]
        self.side_by_side(tests, 1 if alone else LAB_AT_ONCE)

    @contextlib.contextmanager
    def sanitizing(self) -> Iterator[Program | None]:
        """The build with sanitizers, under way."""
        if self.part != "all":
            yield None
            return
        program = self.sanitized.begin(*SANITIZED_PROGRAMS)
        try:
            yield program
        finally:
            program.end()

    def everything(self) -> None:
        builds = [self.build, *([self.sanitized] if self.part == "all" else [])]
        if not self.do("configure", lambda: configure(*builds)):
            return
        own_tests = [f"{self.part}_tests"] if self.part in ("unit", "netns") else []  # all: with sanitizers
        tunnel = TUNNEL_PROGRAMS if self.wants("netns") else ()
        if not self.do("build with -Werror", lambda: self.build.make(*PROGRAMS, *own_tests, *tunnel)):
            return
        has_lab = self.wants("lab")
        with self.sanitizing() as building:
            if self.wants("unit"):
                self.static_checks()
            if has_lab:
                has_lab = self.do("guest image", lambda: guest_image(self.build))
            if has_lab:
                self.lab_tests(alone=False)
            compiled = [self.compiled(self.build, name, 600) for name in own_tests]
            if building and self.do("build with sanitizers, the rest of it", lambda: must_finish(building, "make")):
                compiled = [self.compiled(self.sanitized, "netns_tests", 900),
                            self.compiled(self.sanitized, "unit_tests", 600), self.tunnel_sanitized()]
        if self.wants("netns"):
            compiled[1:1] = self.tunnel_tests(alone=False)
        if self.wants("unit"):
            compiled += self.fuzzed()
        self.side_by_side(compiled, 3)  # those with namespaces mostly wait
        if self.wants("netns"):
            self.side_by_side(self.tunnel_tests(alone=True), 1)
        if has_lab:
            self.lab_tests(alone=True)


def nothing_left(check: Check, before: leftovers.Snapshot, untracked: list[str] | None) -> None:
    """What ends by itself has a moment to do so: a lab whose owner was killed, say."""
    deadline = time.monotonic() + 20
    while (found := leftovers.left(before, os.environ[leftovers.MARK])) and time.monotonic() < deadline:
        time.sleep(0.5)
    for build in (check.build, check.sanitized):
        found += [f"temporary left: {path}" for path in build.temporary.glob("*")]
    if untracked is not None:
        found += [f"git status: {line}" for line in git_status() or [] if line not in untracked]
    if found:
        raise StepFailed("this was left behind:\n  " + "\n  ".join(found))


def git_status() -> list[str] | None:
    """None where this is no git checkout."""
    if not (TOP / ".git").exists():
        return None
    done = subprocess.run(["git", "-c", "safe.directory=*", "status", "--porcelain"], cwd=TOP, capture_output=True,
                          text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else None


def main() -> int:
    end_on_signals()
    check = Check(sys.argv[1] if len(sys.argv) > 1 else "all")
    mark = f"{os.getpid()}-{time.time_ns()}"
    os.environ.update({leftovers.MARK: mark, "BANANA_BUILD": str(check.build.directory), "PYTHONDONTWRITEBYTECODE": "1",
                       "BANANA_LAB": f"check{os.getpid()}", "LC_ALL": "C.UTF-8"})
    before, status = leftovers.snapshot(), git_status()
    try:
        check.everything()
        check.static("nothing is left behind", lambda: nothing_left(check, before, status))
    except KeyboardInterrupt:
        print("check: interrupted", file=sys.stderr)
        return 130
    finally:
        for build in (check.build, check.sanitized):
            forget(build.temporary)
    skipped = f" ({check.total.skipped} skipped)" if check.total.skipped else ""
    print(f"{check.steps.seconds:.0f} s{skipped}")
    print(f"{check.total.passed} passed, {check.total.failed} failed")
    return 1 if check.total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
