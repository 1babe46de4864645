"""Builds out of the tree, for ./quickstart and ./check: bootstrap, configure, make; and the lab's guest image."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from steps import TOP, Program, StepFailed, must, must_finish, run, temporary_in

PROGRAMS = ("bananad", "banana-tunneld", "banana", "banana-hook")
UNITY = pathlib.Path(__file__).resolve().parent / "unity.mk"
COMPILER_FLAGS = "-O1"  # half the time of -O2 with -g, and warnings that need the optimiser are still found


@dataclass
class Build:
    directory: pathlib.Path
    options: Sequence[str] = ()
    flags: str = COMPILER_FLAGS
    compiler: str = ""  # configure's choice
    reversed: bool = False  # see unity.mk

    def log(self, name: str) -> pathlib.Path:
        return self.directory / "log" / f"{name}.log"

    @property
    def temporary(self) -> pathlib.Path:
        return temporary_in(self.directory)

    @contextlib.contextmanager
    def configuring(self) -> Iterator[None]:
        """Under way within, done behind it. Nothing to do if it was configured in the same way before."""
        wanted = [str(TOP / "configure"), *self.options, f"CXXFLAGS={os.environ.get('CXXFLAGS', self.flags)}"]
        if compiler := os.environ.get("CXX", self.compiler):
            wanted.append(f"CXX={compiler}")
        log, stamp = self.log("configure"), self.directory / "log" / "configured"
        if (self.directory / "Makefile").exists() and stamp.exists() and stamp.read_text() == repr(wanted):
            yield
            return
        for old in (log, stamp):
            old.unlink(missing_ok=True)
        program = Program(wanted, log, 600, directory=self.directory)
        try:
            yield
            must_finish(program, "configure")
        finally:
            program.end()
        stamp.write_text(repr(wanted))

    def make(self, *targets: str, timeout: float = 1800) -> None:
        log = self.log("make")
        log.unlink(missing_ok=True)
        must(self._make(targets), log, timeout, directory=self.directory)

    def begin(self, *targets: str, timeout: float = 1800) -> Program:
        """make, with the CPU time that nobody else wants."""
        log = self.log("make")
        log.unlink(missing_ok=True)
        return Program(["chrt", "--idle", "0", *self._make(targets)], log, timeout, directory=self.directory)

    def _make(self, targets: Sequence[str]) -> list[str]:
        """A user's build directory goes on as plain make began it."""
        begun = (self.directory / "libbase.a").exists() and not (self.directory / "unity").exists()
        makefile = [] if begun else ["-f", str(UNITY), f"REVERSED={self.reversed or ''}"]
        return ["make", *makefile, f"-j{os.cpu_count() or 1}", *targets]


def configure(*builds: Build) -> None:
    """Beside each other: it uses one CPU."""
    refuse_configured(TOP)
    if not (TOP / "configure").exists():
        log = builds[0].log("bootstrap")
        log.unlink(missing_ok=True)
        must(["./bootstrap"], log, 300)
    with contextlib.ExitStack() as under_way:
        for build in builds:
            under_way.enter_context(build.configuring())


def refuse_configured(top: pathlib.Path) -> None:
    """automake's configure does not build elsewhere once it was run in the source directory."""
    if (top / "config.status").exists():
        raise StepFailed(f"{top} was configured in place, which keeps it from being built in a directory of its own: "
                         f"make -C {top} distclean, then try again (to install: see README.md)")


def guest_image(build: Build) -> None:
    """The lab's guest; apt's lists are fetched if they are missing, or so old that the package has gone."""
    log = build.log("guest-image")
    log.unlink(missing_ok=True)
    command = [TOP / "tests/lab/guest-image"]
    if run(command, log, 900, temporary=build.temporary) == 0:
        return
    if run(["apt-get", "-q", "update"], log, 600):
        raise StepFailed("apt-get update failed: the guests' kernel comes from Debian's packages", log)
    must(command, log, 900, temporary=build.temporary)
