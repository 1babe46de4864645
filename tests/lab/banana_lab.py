"""A lab of real hypervisors on one machine, without a trace on it.

    with Lab(hosts=2, bananad=False) as lab:
        lab.exec("hv1", "ip", "-br", "link")
        lab.start_vm(Vm("vm1", nics=[Nic(network="banana-lab", address="10.77.0.11/24")]), "hv1")
        migration = lab.migrate("vm1", "hv2")

A lab is one pid namespace (lab_init.py); a host hvK in it is a mount, network and UTS namespace with libvirt and
bananad of its own; `ext` is a machine on the guests' network (lab_net.py draws the cables). A lab that a program made
ends with that program, even by SIGKILL. `detached=True` makes one that stands until down(); attach() finds it again.
Root. Not thread-safe, but several labs of different names may be up at once.
"""

import concurrent.futures
import contextlib
import fcntl
import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import lab_guest
import lab_hosts
import lab_image
import lab_net
from lab_base import (LAB_DIR, LabError, build_dir, children, namespaced_pid, run, start_time, wait_until)
from lab_guest import Nic, Vm
from lab_net import EXT, underlay_address
from lab_process import Process, enter

__all__ = ["EXT", "Host", "Lab", "LabError", "Nic", "Process", "Vm", "underlay_address", "wait_until"]

STATE_DIR = pathlib.Path("/run/banana-lab")
START_TIMEOUT = 30.0
PROGRAM_DIR = "/run/lab"  # on each host: the traffic program
CONTROL_SOCKET = "/run/banana/control.sock"


def lab_name(name: str | None = None) -> str:
    name = name or os.environ.get("BANANA_LAB", "lab")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", name):
        raise LabError(f"'{name}' is no name for a lab: letters, digits, - and _, at most 32")
    return name


@dataclass(frozen=True)
class Host:
    """A host of a running lab."""

    name: str
    lab_name: str
    site: str
    pid: int  # of the process that holds its namespaces, as seen from outside

    @property
    def root(self) -> pathlib.Path:
        """Its file system, as seen from outside."""
        return pathlib.Path(f"/proc/{self.pid}/root")

    @property
    def address(self) -> str:
        return underlay_address(self.name)


class Lab:
    def __init__(self, hosts: int = 2, *, name: str | None = None, bananad: bool = True, sites: Sequence[str] = (),
                 underlay_mtu: int = 1500, uplinks: str = "first", hooks: pathlib.Path | None = None,
                 pki: pathlib.Path | None = None, detached: bool = False) -> None:
        """`sites`: one a host, the last for all that follow. `uplinks`: hv1 alone ("first"), or "all" hosts.
        `hooks`: a directory with the hooks `qemu` and `network`, for a lab without bananad. `pki`: an empty directory
        where the CA and all certificates stay."""
        if not 1 <= hosts <= 200:
            raise LabError(f"a lab has 1 to 200 hosts, not {hosts}")
        if uplinks not in ("first", "all"):
            raise LabError(f"uplinks are 'first' or 'all', not '{uplinks}'")
        self.name = lab_name(name)
        self.bananad = bananad
        self.hosts: dict[str, Host] = {}
        self._count, self._sites, self._mtu, self._uplinks = hosts, list(sites) or ["site1"], underlay_mtu, uplinks
        self._hooks, self._pki, self._detached = hooks, pki, detached
        self._mine = False  # the state directory is this lab's, not another's of the same name
        self._launcher: subprocess.Popen[str] | None = None
        self._init = self._launcher_pid = 0

    # ---- life ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> "Lab":
        return self.up()

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def state(self) -> pathlib.Path:
        return STATE_DIR / self.name

    def up(self) -> "Lab":
        if os.geteuid() != 0:
            raise LabError("a lab needs root: it makes namespaces, bridges and guests (sudo)")
        if self.bananad:
            lab_hosts.require_built()
        try:
            with _state_lock():
                self._claim_state()
                self._start_init()
                self._save()
            lab_net.lay_out(self._init, {host.name: host.pid for host in self.hosts.values()}, self._mtu, self._uplinks)
            self._start_hosts()
            if self._detached:
                self.detach()  # until now a kill of ours would have ended it, half made
        except BaseException:
            self.down()
            raise
        return self

    def _claim_state(self) -> None:
        if self.state.exists():
            try:
                Lab.attach(self.name)
            except LabError:
                shutil.rmtree(self.state)  # what a killed lab could not take with it: a file
            else:
                raise LabError(f"lab '{self.name}' is up: `lab down` ends it, BANANA_LAB names another beside it")
        self.state.mkdir(parents=True)
        self._mine = True

    def _start_init(self) -> None:
        names = [f"hv{number}" for number in range(1, self._count + 1)] + [EXT]
        owner = os.pidfd_open(os.getpid())
        log = self.state / "init.log"
        with open(log, "w", encoding="utf-8") as errors:
            self._launcher = subprocess.Popen(
                ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--net", "--uts", "--mount-proc",
                 "/usr/bin/python3", "-B", str(LAB_DIR / "lab_init.py"), str(self.state), str(owner), *names],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
                cwd="/", pass_fds=[owner])
        os.close(owner)
        self._launcher_pid = self._launcher.pid
        assert self._launcher.stdout
        line = self._launcher.stdout.readline()
        self._launcher.stdout.close()
        if not line:
            raise LabError(f"lab '{self.name}' did not begin: {log.read_text().strip()}")
        inside = {pid: name for name, pid in json.loads(line).items()}
        self._init = children(self._launcher_pid)[0]
        for pid in children(self._init):
            name = inside.get(namespaced_pid(pid) or 0)
            if name:
                self.hosts[name] = Host(name, self.name, self._site(name), pid)
        self.hosts = {name: self.hosts[name] for name in names}  # in order

    def _site(self, host: str) -> str:
        return "" if host == EXT else self._sites[min(int(host[2:]), len(self._sites)) - 1]

    def _save(self) -> None:
        partial = self.state / "state.new"
        partial.write_text(json.dumps({
            "init": self._init, "init_start": start_time(self._init), "launcher": self._launcher_pid,
            "bananad": self.bananad, "hosts": {host.name: [host.pid, host.site] for host in self.hosts.values()}}))
        partial.rename(self.state / "state.json")

    @classmethod
    def attach(cls, name: str | None = None) -> "Lab":
        """A lab that is up, whoever started it; LabError if there is none."""
        lab = cls(name=name, bananad=False)
        try:
            state = json.loads((lab.state / "state.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError) as error:
            raise LabError(f"no lab '{lab.name}' is up: `lab up` starts one (BANANA_LAB chooses by name)") from error
        if start_time(state["init"]) != state["init_start"]:
            raise LabError(f"lab '{lab.name}' is no longer: it was killed, and all of it went with it; `lab up` again")
        lab._mine = True
        lab._init, lab._launcher_pid, lab.bananad = state["init"], state["launcher"], state["bananad"]
        lab.hosts = {name: Host(name, lab.name, site, pid) for name, (pid, site) in state["hosts"].items()}
        return lab

    def detach(self) -> None:
        """From now on the lab stands until down(), whatever becomes of us."""
        _kill(self._init, signal.SIGUSR1)

    def down(self) -> None:
        """Ends the lab and returns when nothing of it is left. Nothing to do is not an error."""
        if self._launcher_pid:
            try:
                waiting = os.pidfd_open(self._launcher_pid)
            except ProcessLookupError:
                waiting = -1
            init = self._init or next(iter(children(self._launcher_pid)), 0)
            _kill(init or self._launcher_pid, signal.SIGTERM)
            if waiting >= 0:
                if not _ended(waiting, 5.0):
                    _kill(init or self._launcher_pid, signal.SIGKILL)
                    if not _ended(waiting, 10.0):
                        raise LabError(f"lab '{self.name}' (process {init}) does not end: see what it waits for in "
                                       f"/proc/{init}/stack")
                os.close(waiting)
            if self._launcher:
                self._launcher.wait()
        self._launcher_pid = self._init = 0
        self.hosts = {}
        if self._mine:
            shutil.rmtree(self.state, ignore_errors=True)
            _remove_if_empty(STATE_DIR)
        self._mine = False

    # ---- hosts ---------------------------------------------------------------------------------------------------

    @property
    def hypervisors(self) -> list[Host]:
        return [host for host in self.hosts.values() if host.name != EXT]

    def host(self, name: str) -> Host:
        if name not in self.hosts:
            raise LabError(f"lab '{self.name}' has no host '{name}': it has {', '.join(self.hosts) or 'none'}")
        return self.hosts[name]

    def _start_hosts(self) -> None:
        hypervisors = self.hypervisors
        if self.bananad:
            with tempfile.TemporaryDirectory(prefix="banana-pki-") as directory:
                pki = self._pki or pathlib.Path(directory)
                lab_hosts.make_pki(pki, list(hypervisors))
                for host in hypervisors:
                    lab_hosts.configure_banana(host, list(hypervisors), pki)
        traffic = lab_image.traffic_program()
        for host in self.hosts.values():
            (host.root / PROGRAM_DIR.lstrip("/")).mkdir(parents=True)
            shutil.copy(traffic, host.root / PROGRAM_DIR.lstrip("/"))
        names = "".join(f"{host.address} {host.name}\n" for host in hypervisors)
        for host in hypervisors:
            lab_hosts.write(host, "/etc/hosts", f"127.0.0.1 localhost\n{names}")
            lab_hosts.configure_libvirt(host, None if self.bananad else self._hooks)
            lab_hosts.lend_capabilities(host)
        if self.bananad:
            self.each(lambda host: self.start_bananad(host.name), hypervisors)
        self.each(lambda host: self.start_libvirtd(host.name), hypervisors)
        lab_hosts.keep_capabilities(hypervisors[0])

    def each(self, do: Callable[[Host], object], hosts: Iterable[Host]) -> None:
        """For all hosts at once; the first error is raised when all have ended."""
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for future in [pool.submit(do, host) for host in hosts]:
                future.result()

    def start_bananad(self, host: str, timeout: float = START_TIMEOUT) -> None:
        words = [str(build_dir() / "bananad"), "--config", "/etc/banana/bananad.toml"]
        pid = self.daemon(host, words, lab_hosts.BANANAD_LOG)
        socket_path = self.host(host).root / CONTROL_SOCKET.lstrip("/")
        self._wait_daemon(f"bananad on {host}", lambda: _answers(socket_path), lambda: start_time(pid) is not None,
                          self.host(host).root / lab_hosts.BANANAD_LOG.lstrip("/"), timeout)

    def start_libvirtd(self, host: str, timeout: float = START_TIMEOUT) -> None:
        """Starts what is not running, and waits until it answers."""
        if not self.pids(host, "virtlogd"):
            self.exec(host, "virtlogd", "-d")
        self.exec(host, *_unconfined(), "libvirtd", "-d", "--listen")
        # The drivers are ready when a capabilities query is: it also makes libvirt look at QEMU, before a guest waits.
        question = ("virsh", "domcapabilities", "--virttype", "qemu")
        self._wait_daemon(f"libvirtd on {host}", lambda: self.exec(host, *question, check=False).returncode == 0,
                          lambda: bool(self.pids(host, "libvirtd")),
                          self.host(host).root / "var/log/libvirt/libvirtd.log", timeout)

    def _wait_daemon(self, what: str, ready: Callable[[], bool], alive: Callable[[], bool], log: pathlib.Path,
                     timeout: float) -> None:
        problem = f"{what} ended at once"
        try:
            wait_until(lambda: ready() or not alive(), timeout, f"{what} to answer")
            if ready():
                return
        except LabError as error:
            problem = str(error)
        tail = log.read_text(errors="replace")[-2000:].strip() if log.exists() else ""
        raise LabError(f"{problem}; the end of its log:\n{tail or '(nothing)'}")

    def pids(self, host: str, program: str) -> list[int]:
        """Processes of a host that run a program of this name, ids as seen from outside; only the lab's own."""
        mine = os.stat(f"/proc/{self.host(host).pid}/ns/mnt").st_ino
        found = []
        for pid in self._descendants():
            try:
                if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == program[:15] and \
                        os.stat(f"/proc/{pid}/ns/mnt").st_ino == mine:
                    found.append(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
            except PermissionError:  # a daemon's child that has given its rights up, and runs another program soon
                continue
        return found

    def _descendants(self) -> list[int]:
        """Every process of the lab that its first process has inherited or made."""
        found, todo = [], [self._init]
        while todo:
            born = children(todo.pop())
            found += born
            todo += born
        return found

    def kill_daemon(self, host: str, program: str, number: signal.Signals = signal.SIGTERM,
                    timeout: float = 20) -> None:
        """Ends a daemon of a host and waits until it is gone; another may have been started in its place by then."""
        ended = set(self.pids(host, program))
        for pid in ended:
            _kill(pid, number)
        wait_until(lambda: ended.isdisjoint(self.pids(host, program)), timeout, f"{program} on {host} to end")

    # ---- programs ------------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        system = f"{PROGRAM_DIR}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": f"{build_dir()}:{system}" if self.bananad else system,
                "LIBVIRT_DEFAULT_URI": "qemu:///system", "LC_ALL": "C.UTF-8"}

    def command(self, host: str, *words: object) -> list[str]:
        """The command line that runs something on a host, for those who start it themselves. `underlay` is the lab's
        own namespace, with the bridge that joins the hosts."""
        pid = self._init if host == "underlay" else self.host(host).pid
        return enter(pid, [str(word) for word in words], self.environment())

    def exec(self, host: str, *words: object, check: bool = True, timeout: float = 60, stdin: str = "",
             ) -> subprocess.CompletedProcess[str]:
        """Runs a program on a host to its end; LabError with its stderr if it fails (unless check=False)."""
        return run(self.command(host, *words), timeout, check, stdin, f"{host}: {' '.join(map(str, words))}")

    def spawn(self, host: str, *words: object) -> Process:
        """Starts a program on a host; it dies with the returned object's kill(), or with us."""
        return Process(self.command(host, *words), f"{words[0]} on {host}")

    def daemon(self, host: str, words: Sequence[str], log: str) -> int:
        """Starts a program that stays when we are gone, until the lab ends; its output goes to `log` on the host.
        Returns its process id as seen from outside."""
        script = 'log=$0; setsid "$@" </dev/null >>"$log" 2>&1 & echo $!'
        inside = int(self.exec(host, "sh", "-c", script, log, *words).stdout)
        mine = [pid for pid in self._descendants() if namespaced_pid(pid) == inside]
        if not mine:
            raise LabError(f"{words[0]} on {host} ended at once: see {log} there")
        return mine[0]

    def virsh(self, host: str, *words: object, timeout: float = 60) -> str:
        return self.exec(host, "virsh", "-q", *words, timeout=timeout).stdout

    def define_network(self, name: str, bridge: str, mtu: int | None = None, hosts: Iterable[str] = ()) -> None:
        """A libvirt network onto an existing bridge, as bananad makes them."""
        xml = lab_guest.network_xml(name, bridge, mtu)
        for host in hosts or [host.name for host in self.hypervisors]:
            self.exec(host, "virsh", "net-define", "/dev/stdin", stdin=xml)
            self.virsh(host, "net-start", name)
            self.virsh(host, "net-autostart", name)

    # ---- guests --------------------------------------------------------------------------------------------------

    def start_vm(self, vm: Vm, host: str, timeout: float = 180) -> None:
        """Defines and starts a guest and waits until it says that it is ready."""
        lab_guest.start(self, vm, host, timeout)

    def find_vm(self, name: str) -> str:
        """The host on which a guest runs."""
        for host in self.hypervisors:
            if self.exec(host.name, "virsh", "-q", "domstate", name, check=False).stdout.strip() == "running":
                return host.name
        told = "\n".join([f"guest '{name}' runs on no host of lab '{self.name}'",
                          *(lab_guest.last_words(self, name, host.name) for host in self.hypervisors)])
        raise lab_guest.GuestPanic(told) if lab_guest.has_panicked(self, name) else LabError(told)

    def guest_sh(self, name: str, command: str, timeout: float = 20, check: bool = True) -> str:
        """Runs a shell command in a guest, over its serial console: works without a network."""
        return lab_guest.shell(self, name, command, timeout, check)


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _answers(socket_path: pathlib.Path) -> bool:
    """Somebody listens: a file alone may be left of one that was killed."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(socket_path))
        except OSError:
            return False
    return True


def _unconfined() -> list[str]:
    """Where AppArmor is on, its profile for libvirtd would refuse the hooks a program that is not installed."""
    enabled = pathlib.Path("/sys/module/apparmor/parameters/enabled")
    on = enabled.exists() and enabled.read_text().strip() == "Y" and shutil.which("aa-exec")
    return ["aa-exec", "-p", "unconfined", "--"] if on else []


def _remove_if_empty(directory: pathlib.Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        pass


@contextlib.contextmanager
def _state_lock() -> Iterator[None]:
    """One lab at a time may look for its name and take it."""
    STATE_DIR.mkdir(parents=True, exist_ok=True)
    directory = os.open(STATE_DIR, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _ended(pidfd: int, timeout: float) -> bool:
    return bool(select.select([pidfd], [], [], timeout)[0])
