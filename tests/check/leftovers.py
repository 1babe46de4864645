"""What a run could leave on the machine, and whether it did.

Processes are known to be ours by a mark in their environment, which everything in a lab inherits but QEMU, and QEMU
lives in its lab's pid namespace: it cannot outlive the lab's first process, which has the mark. Of all else there is a
snapshot before and one after. The machine is to be left alone meanwhile; other labs on it, which have neither our mark
nor anything outside their own namespaces, do no harm.
"""

import json
import os
import pathlib
import re
import subprocess
from collections.abc import Mapping

MARK = "BANANA_CHECK_RUN"
LABS = pathlib.Path("/run/banana-lab")
FOLDERS = ("/etc/banana", "/var/lib/banana", "/run/banana", "/etc/libvirt/hooks", "/run/netns", "/sys/fs/bpf",
           "/usr/sbin/policy-rc.d")

Snapshot = Mapping[str, frozenset[str]]


def marked(mark: str) -> dict[int, str]:
    """Processes whose environment has our mark, but ourselves and those that we descend from."""
    wanted = f"{MARK}={mark}".encode()
    mine, pid = set(), os.getpid()
    while pid:
        mine.add(pid)
        pid = _parent(pid)
    found = {}
    for path in pathlib.Path("/proc").iterdir():
        try:
            if path.name.isdigit() and int(path.name) not in mine and \
                    wanted in (path / "environ").read_bytes().split(b"\0"):
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # gone meanwhile
    return found


def _parent(pid: int) -> int:
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _lines(*command: str) -> frozenset[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return frozenset(line.strip() for line in done.stdout.splitlines() if line.strip())


def _mounts() -> frozenset[str]:
    """Mount points of our own mount namespace, with what is mounted there."""
    found = set()
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        found.add(f"{words[4]} ({words[words.index('-') + 1]})")
    return frozenset(found)


def _files() -> frozenset[str]:
    found = set()
    for folder in map(pathlib.Path, FOLDERS):
        if folder.exists():
            found.add(str(folder))
            found.update(map(str, folder.rglob("*")) if folder.is_dir() else ())
    return frozenset(found)


def _dead_labs() -> frozenset[str]:
    """State directories of labs that are no more; one that lives is of a marked process, or not ours."""
    found = set()
    for state in LABS.iterdir() if LABS.exists() else ():
        try:
            init = json.loads((state / "state.json").read_text())["init"]
            if pathlib.Path(f"/proc/{init}").exists():
                continue
        except (OSError, ValueError, KeyError):
            pass
        found.add(str(state))
    return frozenset(found)


def snapshot() -> Snapshot:
    return {
        "link": frozenset(re.split(r"[@ ]", line)[0] for line in _lines("ip", "-br", "link")),
        "address": frozenset(" ".join(line.split()) for line in _lines("ip", "-br", "address")),
        "route": _lines("ip", "route", "show", "table", "all"),
        "qdisc": _lines("tc", "qdisc", "show"),
        "mount": _mounts(),
        "file": _files(),
        "lab": _dead_labs(),
        "temporary": frozenset(path.name for path in pathlib.Path("/tmp").glob("banana-*")),
    }


def left(before: Snapshot, mark: str) -> list[str]:
    """What is there that was not, and what is not that was; empty if the machine is as it was."""
    after = snapshot()
    found = [f"process {pid}: {command}" for pid, command in sorted(marked(mark).items())]
    for kind, now in after.items():
        found += [f"{kind} left: {item}" for item in sorted(now - before[kind])]
        if kind not in ("lab", "temporary"):  # of those, what was there may have been anybody's
            found += [f"{kind} gone: {item}" for item in sorted(before[kind] - now)]
    return found
