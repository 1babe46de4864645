"""What ./quickstart and ./check share: steps with a progress line each, and programs that leave nothing when they are
cut short.

A program is started in a session of its own, so that a ^C reaches us alone; we kill it, and the kernel kills it when we
are killed (PDEATHSIG). One that is `contained` is the head of a pid namespace, and all that it started goes with it; it
has a /tmp of its own, too. The lab's tests are not: a lab has its own pid namespace, and ends with its owner.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
TOO_LONG = 124
TAIL = 40  # lines of a log that are shown when a step fails


class StepFailed(Exception):
    """Why a step failed; `log` holds its output."""

    def __init__(self, why: str, log: pathlib.Path | None = None) -> None:
        super().__init__(why)
        self.log = log


def end_on_signals() -> None:
    """TERM and HUP end us as a ^C does: by an exception, so that everything is taken down. INT does so in the background,
    too, where a shell has it ignored."""
    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def tail(log: pathlib.Path, lines: int = TAIL) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


class Steps:
    """Progress lines: what is being done, then how it ended and how long it took."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Yields a list of words that end the line. StepFailed and others pass on, once the line says so."""
        print(f"{title + ' ':.<50} ", end="", flush=True)
        began, words = time.monotonic(), ["ok"]
        try:
            yield words
        except BaseException as error:
            ended = "failed" if isinstance(error, Exception) else "interrupted"
            print(f"{ended} ({time.monotonic() - began:.1f} s)", flush=True)
            raise
        print(f"{', '.join(words)} ({time.monotonic() - began:.1f} s)", flush=True)

    def say(self, title: str, words: str, seconds: float) -> None:
        """The line of a step that ran beside another."""
        print(f"{title + ' ':.<50} {words} ({seconds:.1f} s)", flush=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def temporary_in(directory: pathlib.Path) -> pathlib.Path:
    """A folder for this process's programs; another one's may use the same build."""
    return directory / f"tmp-{os.getpid()}"


def contain(words: Sequence[str], temporary: pathlib.Path) -> list[str]:
    """The command in a pid namespace, and with `temporary` as its /tmp unless that would hide the checkout."""
    script = 'mount --bind "$0" /tmp; "$@"; exit $?'
    if pathlib.Path("/tmp") in TOP.parents or pathlib.Path("/tmp") in temporary.resolve().parents:
        script = '"$@"; exit $?'  # the shell stays, to be process 1 in there: it reaps
    return ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--kill-child", "--mount-proc",
            "sh", "-c", script, str(temporary), *words]


class Program:
    """A program that runs, its output going to `log`; end() leaves nothing of it."""

    def __init__(self, words: Sequence[object], log: pathlib.Path, timeout: float, *, contained: bool = True,
                 temporary: pathlib.Path | None = None, environment: Mapping[str, str] | None = None,
                 directory: pathlib.Path = TOP) -> None:
        command = [str(word) for word in words]
        temporary = temporary or temporary_in(log.parent.parent)
        temporary.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.timeout, self.began = log, timeout, time.monotonic()
        shown = " ".join(command)
        self._note(f"$ {shown if len(shown) < 400 else shown[:397] + '...'}")
        prefix = contain(command, temporary) if contained else ["setpriv", "--pdeathsig", "KILL", *command]
        with open(log, "ab") as output:
            self._process = subprocess.Popen(prefix, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                             cwd=directory, start_new_session=True,
                                             env={**os.environ, "TMPDIR": str(temporary), **(environment or {})})

    def _note(self, text: str) -> None:
        with open(self.log, "a", encoding="utf-8") as output:
            output.write(f"{text}\n")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def wait(self, at_most: float = float("inf")) -> int | None:
        """Its status, 124 if it was ended for taking too long; None if it runs on after `at_most` seconds."""
        left = max(0.0, self.timeout - self.seconds)
        try:
            return self._process.wait(min(left, at_most))
        except subprocess.TimeoutExpired:
            if self.seconds < self.timeout:
                return None
        self.end()
        self._note(f"no end within {self.timeout:.0f} s")
        return TOO_LONG

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def finish(program: Program) -> int:
    """Its status, when it has ended."""
    try:
        while (status := program.wait()) is None:
            pass
        return status
    finally:
        program.end()


def must_finish(program: Program, name: object) -> None:
    status = finish(program)
    if status == TOO_LONG:
        raise StepFailed(f"{name} did not end within {program.timeout:.0f} s", program.log)
    if status:
        raise StepFailed(f"{name} ended with status {status}", program.log)


def run(words: Sequence[object], log: pathlib.Path, timeout: float, **options: object) -> int:
    """Runs a program to its end; its status as wait() gives it."""
    return finish(Program(words, log, timeout, **options))  # type: ignore[arg-type]


def must(words: Sequence[object], log: pathlib.Path, timeout: float, **options: object) -> None:
    must_finish(Program(words, log, timeout, **options), words[0])  # type: ignore[arg-type]


def show(error: Exception) -> None:
    log = getattr(error, "log", None)
    if log is not None:
        print(f"---- the end of {log}\n{tail(log)}\n----", file=sys.stderr, flush=True)
    print(f"{pathlib.Path(sys.argv[0]).stem}: {error}", file=sys.stderr, flush=True)


def forget(directory: pathlib.Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
