"""What every part of the lab needs: paths, one error, bounded commands and waits."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

LAB_DIR = pathlib.Path(__file__).resolve().parent
TOP = LAB_DIR.parent.parent
COMMAND_TIMEOUT = 60.0


class LabError(Exception):
    """What went wrong, where, and what to do: for the user as it stands."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cache_dir() -> pathlib.Path:
    """Where kernels, initramfs and QEMU's capabilities are kept between labs."""
    path = pathlib.Path(os.environ.get("BANANA_CACHE", "/var/cache/banana-lab"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def build_dir() -> pathlib.Path:
    """Where the product's programs stand: $BANANA_BUILD, else build/ of the checkout, else its top."""
    named = os.environ.get("BANANA_BUILD")
    if named:
        return pathlib.Path(named).resolve()
    return TOP / "build" if (TOP / "build" / "bananad").exists() else TOP


def run(command: Sequence[str], timeout: float = COMMAND_TIMEOUT, check: bool = True, stdin: str = "",
        label: str = "", **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, output captured; LabError with its stderr if it fails or takes too long. `label`: what
    errors call it, if not by its words."""
    shown = label or " ".join(str(word) for word in command)
    shown = shown if len(shown) < 200 else shown[:197] + "..."
    try:
        done = subprocess.run([str(word) for word in command], input=stdin, text=True, capture_output=True,
                              timeout=timeout, **options)  # type: ignore[call-overload]
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{shown}: no end within {timeout:.0f} s") from error
    except FileNotFoundError as error:
        raise LabError(f"{shown}: no program {error.filename}; README names the packages") from error
    if check and done.returncode:
        raise LabError(f"{shown}: status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done


def wait_until(condition: Callable[[], T | None], timeout: float, what: str, interval: float = 0.02) -> T:
    """Asks until the condition is true and returns its answer; LabError naming `what` once the time is over."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout:.0f} s in vain for {what}")
        time.sleep(interval)


def namespaced_pid(pid: int) -> int | None:
    """The process's id in its innermost pid namespace; None if it is gone."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    line = next((line for line in status.splitlines() if line.startswith("NSpid:")), "")
    return int(line.split()[-1]) if line else None


def children(pid: int) -> list[int]:
    """Direct children of a process, ids as seen from here; empty if it is gone."""
    try:
        tasks = list(pathlib.Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def start_time(pid: int) -> str | None:
    """When a process was started, in ticks: with the id it names one process for ever."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None
