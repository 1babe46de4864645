"""Programs run inside a lab, started from outside it.

Each is a child of an `nsenter` of ours and dies with it, so that nothing runs on that nobody waits for; daemons that
are meant to stay go through Lab.daemon.
"""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

from lab_base import LabError, children, wait_until

GONE = 10.0  # seconds that a killed program may take to be gone


def enter(pid: int, command: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
    """The command line that runs `command` in all of a process's namespaces, in the caller's directory if it is
    there too."""
    words = ["nsenter", "-t", str(pid), "--mount", "--net", "--uts", "--pid", "setpriv", "--pdeathsig", "KILL", "env"]
    words += [f"{name}={value}" for name, value in (environment or {}).items()]
    return words + ["sh", "-c", 'cd "$0" 2>/dev/null || cd /; exec "$@"', os.getcwd(), *map(str, command)]


class Process:
    """A program in the lab whose output (stdout and stderr together) is read while it runs."""

    def __init__(self, command: list[str], label: str) -> None:
        self.label = label
        self.output = ""  # all that was read so far
        self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                       start_new_session=True)
        assert self._popen.stdout and self._popen.stdin
        os.set_blocking(self._popen.stdout.fileno(), False)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int | None:
        """The program's own process id, as seen from outside the lab; None before it began and after its end."""
        return next(iter(children(self._popen.pid)), None)

    @property
    def status(self) -> int | None:
        return self._popen.poll()

    def read(self, timeout: float = 0.0) -> str:
        """All output so far; waits up to `timeout` for more."""
        assert self._popen.stdout
        if not self._popen.stdout.closed:
            select.select([self._popen.stdout], [], [], timeout)
            try:
                while data := os.read(self._popen.stdout.fileno(), 65536):
                    self.output += data.decode(errors="replace")
            except BlockingIOError:
                pass
        return self.output

    def expect(self, text: str, timeout: float = 30.0) -> None:
        """Waits until the output has `text`; LabError with the output if it ends or takes too long."""
        deadline = time.monotonic() + timeout
        while text not in self.read(0.05):
            if self.status is not None and text not in self.read():
                raise LabError(f"{self.label} ended with status {self.status} before '{text}': {self.output.strip()}")
            if time.monotonic() > deadline:
                raise LabError(f"{self.label}: no '{text}' within {timeout:.0f} s: {self.output.strip()}")

    def write(self, text: str) -> None:
        assert self._popen.stdin
        self._popen.stdin.write(text.encode())
        self._popen.stdin.flush()

    def close_input(self) -> None:
        assert self._popen.stdin
        self._popen.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        """To the program itself, not to what started it."""
        pid = wait_until(lambda: self.pid or self.status is not None, 5, f"{self.label} to begin")
        if pid is not True:
            os.kill(pid, number)
        if number == signal.SIGCONT and self.status is None:  # nsenter stops itself when its child is stopped
            os.kill(self._popen.pid, number)

    def wait(self, timeout: float = 30.0) -> int:
        """Its exit status, once it has ended by itself."""
        deadline = time.monotonic() + timeout
        while self.status is None:
            self.read(0.05)
            if time.monotonic() > deadline:
                raise LabError(f"{self.label} did not end within {timeout:.0f} s: {self.output.strip()}")
        self.read()
        assert self.status is not None
        return self.status

    def kill(self) -> None:
        """Ends it at once, if it still runs. Behind it, the program is gone, with its sockets: not only what began it."""
        if self.status is None:
            with contextlib.ExitStack() as stack:
                program = None
                with contextlib.suppress(ProcessLookupError):
                    if inner := self.pid:
                        program = os.pidfd_open(inner)
                        stack.callback(os.close, program)
                self._popen.kill()
                self._popen.wait()
                if program is not None:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(program, signal.SIGKILL)
                    if not select.select([program], [], [], GONE)[0]:
                        raise LabError(f"{self.label} was killed, and is there after {GONE:.0f} s")
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe and not pipe.closed:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
