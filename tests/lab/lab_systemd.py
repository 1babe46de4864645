"""A machine on which a real systemd runs the units as they are shipped: tests/lab/lab-systemd. No libvirt, no journal;
what the units' programs say goes to one file."""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import IO

from lab_base import LAB_DIR, TOP, LabError, children, run, wait_until
from lab_hosts import require_built

SYSTEMD = pathlib.Path("/lib/systemd/systemd")
UNITS = "etc/banana-units"
PLACES = {"sbindir": "/usr/sbin", "bindir": "/usr/bin", "docdir": "/usr/share/doc/banana"}
# What the units ask for, and systemd itself: empty, as there is no machine to bring up.
TARGETS = ("basic", "default", "multi-user", "network", "shutdown", "sysinit")
LOG = "/run/units.log"
LOGGED = f"[Service]\nStandardOutput=append:{LOG}\nStandardError=append:{LOG}\n"


def missing() -> str:
    """What this machine lacks for one; "" if nothing."""
    if not SYSTEMD.exists():
        return f"no {SYSTEMD} (package systemd)"
    tree = run(["findmnt", "-n", "-t", "cgroup2", "-o", "TARGET"], check=False).stdout.split()
    if not tree:
        return "no cgroup2 file system is mounted"
    try:
        os.rmdir(tempfile.mkdtemp(prefix="banana-lab-", dir=tree[0]))
        return ""
    except OSError as error:
        return f"cgroups cannot be made: {error}"


class Machine:
    def __init__(self, name: str) -> None:
        self.name = name
        build = require_built()
        self.state = pathlib.Path(tempfile.mkdtemp(prefix="banana-systemd-"))
        self.files = self.state / "files"
        self._systemd = 0
        self._starter: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        (self.state / "written").mkdir()
        self._install(build)

    def _install(self, build: pathlib.Path) -> None:
        for place, programs in (("usr/sbin", ("bananad", "banana-tunneld")), ("usr/bin", ("banana",))):
            (self.files / place).mkdir(parents=True)
            for program in programs:
                shutil.copy(build / program, self.files / place)
        units = self.files / UNITS
        (units / "service.d").mkdir(parents=True)
        (units / "service.d/log.conf").write_text(LOGGED)
        for template in (TOP / "packaging").glob("*.service.in"):
            text = re.sub(r"@(\w+)@", lambda match: PLACES[match[1]], template.read_text(encoding="utf-8"))
            (units / template.stem).write_text(text, encoding="utf-8")
        for target in TARGETS:
            (units / f"{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")

    def up(self) -> None:
        self._said = open(self.state / "said", "wb")  # noqa: SIM115  # until down()
        self._starter = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", LAB_DIR / "lab-systemd", self.state, self.name],
            stdin=subprocess.DEVNULL, stdout=self._said, stderr=subprocess.STDOUT, start_new_session=True)
        wait_until(lambda: self._starter and (self._starter.poll() is not None or self._answers()), 30,
                   f"systemd of {self.name}")
        if self._starter.poll() is not None:
            raise LabError(f"{self.name} did not begin: {(self.state / 'said').read_text().strip()}")

    def _answers(self) -> bool:
        assert self._starter
        for unshared in children(self._starter.pid):
            for pid in children(unshared):
                self._systemd = pid
                return self.run("systemctl", "is-active", "default.target", check=False).returncode == 0
        return False

    def down(self) -> None:
        if self._starter:
            self._starter.terminate()
            self._starter.wait(20)
        if self._said:
            self._said.close()
        shutil.rmtree(self.state, ignore_errors=True)

    def run(self, *words: object, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "-t", str(self._systemd), "--all"]
        label = f"{self.name}: {' '.join(map(str, words))}"
        return run([*enter, *map(str, words)], check=check, label=label, **options)

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run("systemctl", "--no-pager", *words, check=check).stdout.strip()

    def shown(self, unit: str, *properties: str) -> Sequence[str]:
        """A unit's properties, in their order."""
        found = dict(line.split("=", 1) for line in self.systemctl("show", unit).splitlines() if "=" in line)
        return [found[name] for name in properties]

    def write(self, path: str, text: str) -> None:
        self.run("tee", path, stdin=text)

    def log(self) -> str:
        return self.run("cat", LOG, check=False).stdout

    @property
    def systemd(self) -> int:
        """Process 1 of the machine, as seen from outside."""
        return self._systemd
