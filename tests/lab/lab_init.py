"""Process 1 of a lab: `unshare --pid --fork ... lab_init.py STATE OWNER HOST...`

All that a lab runs lives in this process's pid namespace, so its end, however it comes, ends everything: the kernel
kills the namespace's processes, and with them go network namespaces, mounts and BPF objects. It ends on SIGTERM, or
when the process behind the pidfd OWNER does, unless SIGUSR1 has told it to stand by itself. Says on stdout, as JSON,
which process holds which host, and closes it.
"""

import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys


def start_hosts(state: pathlib.Path, names: list[str]) -> dict[str, int]:
    """One holder a host, all at once; their process ids in this namespace."""
    script = str(pathlib.Path(__file__).with_name("lab-host"))
    holders = {
        name: subprocess.Popen(["unshare", "--mount", "--net", "--uts", "sh", script, name, str(state)],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        for name in names
    }
    for name, holder in holders.items():
        assert holder.stdout
        if holder.stdout.readline() != "ready\n":
            sys.exit(f"lab: could not make host {name}: see the message above (mount, overlay and sysfs need root)")
        holder.stdout.close()
    return {name: holder.pid for name, holder in holders.items()}


def reap() -> None:
    """Daemons that lost their parent become our children."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> None:
    state, owner, *names = sys.argv[1:]
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a ^C at the owner's terminal is the owner's to handle

    print(json.dumps(start_hosts(pathlib.Path(state), names)), flush=True)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    poll = select.poll()
    poll.register(wake_read, select.POLLIN)
    poll.register(int(owner), select.POLLIN)
    while True:
        ready = dict(poll.poll())
        signals = os.read(wake_read, 4096) if wake_read in ready else b""
        if signal.SIGUSR1 in signals:
            poll.unregister(int(owner))
        elif signal.SIGTERM in signals or int(owner) in ready:
            break
        reap()
    shutil.rmtree(state, ignore_errors=True)
    try:
        pathlib.Path(state).parent.rmdir()
    except OSError:
        pass  # another lab's is there


if __name__ == "__main__":
    main()
