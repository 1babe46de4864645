"""What the rows of bench-dtls have in common: four machines in a row, and a tunnel between the two in the middle.

  machine of the guest | host of the guest          | host of the uplink            | machine on the uplink
  KEY-g  eth0 ---------|- sp0 [KEY-a] tunnel ~ eth0 -|- eth0 ~ tunnel [KEY-b] eth1 ---|- eth0  KEY-e

A peer that carries Ethernet frames has its tunnel device in a bridge with the cable to its machine; one that carries IP
packets routes between the two. Each row has its own four, so that rows differ in nothing else, and all stand at once.
"""

import os
import pathlib
import shutil
import subprocess
from collections.abc import Sequence

from bench_world import BenchError, build_dir, cable, inside, ip, make_namespace, run, visiting, wait_until

UNDERLAY_MTU = 1500
START_TIMEOUT = 20.0
ECHO_PORT = "7007"  # on the machine on the uplink, at all times
HOST_A, HOST_B = "10.99.0.2", "10.99.0.1"  # underlay addresses


def flow() -> str:
    """The program that makes and measures traffic (flow.cpp)."""
    return str(build_dir() / "bench-flow")


class Row:
    """A way from one machine to the other; its daemons run until the bench ends."""

    key = ""  # names its namespaces and selects it; at most 9 characters
    label = ""
    programs: Sequence[str] = ()  # without these it is skipped
    guest_mtu = 1500  # of the machines' devices: what suits the peer best
    offloads_to_test = True

    def __init__(self) -> None:
        self.guest, self.host_a, self.host_b, self.ext = (f"{self.key}-{letter}" for letter in "gabe")
        self.target = "10.88.0.1"  # the machine on the uplink's address
        self.dir = pathlib.Path(f"/run/peer-{self.key}")
        self._daemons: list[tuple[str, subprocess.Popen[bytes], pathlib.Path]] = []

    def missing(self) -> str | None:
        """Why the row cannot be measured here; None if it can."""
        absent = [name for name in self.programs if not shutil.which(name)]
        return f"no {', '.join(absent)}" if absent else None

    def lay(self) -> None:
        """The machines, their cables and addresses, and the tunnel."""
        self.dir.mkdir(mode=0o700)
        for name in (self.guest, self.host_a, self.host_b, self.ext):
            make_namespace(name)
        cable(self.guest, "eth0", self.host_a, "sp0", self.guest_mtu)
        cable(self.host_a, "eth0", self.host_b, "eth0", UNDERLAY_MTU)
        cable(self.host_b, "eth1", self.ext, "eth0", self.guest_mtu)
        ip(self.host_a, f"address add {HOST_A}/24 dev eth0")
        ip(self.host_b, f"address add {HOST_B}/24 dev eth0")
        self.daemon(self.ext, [flow(), "echo", ECHO_PORT])
        self.start()
        wait_until(self.reaches, START_TIMEOUT, f"{self.label}: a first packet ({self.tail()})")

    def start(self) -> None:
        raise NotImplementedError

    def reaches(self) -> bool:
        for name, process, _ in self._daemons:
            if process.poll() is not None:
                raise BenchError(f"{self.label}: {name} ended with status {process.returncode}: {self.tail()}")
        words = inside(self.guest, [flow(), "probe", ECHO_PORT, self.target, "1", "0"])
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    # ---- for what rows do --------------------------------------------------------------------------------------------

    def file(self, name: str, text: str) -> str:
        """A file of the row's own; its path."""
        path = self.dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
        path.chmod(0o600)
        return str(path)

    def daemon(self, namespace: str, words: Sequence[str], environment: dict[str, str] | None = None) -> None:
        """Starts a program that stays in the foreground."""
        log = self.dir / f"{len(self._daemons)}.log"
        with open(log, "wb") as out:
            process = subprocess.Popen(inside(namespace, words), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                       env={**os.environ, **(environment or {})}, cwd=self.dir)
        self._daemons.append((words[0], process, log))

    def tail(self) -> str:
        return " | ".join(log.read_text(errors="replace")[-400:].strip() for _, _, log in self._daemons[1:])

    def wait_device(self, namespace: str, device: str) -> None:
        def there() -> bool:
            for name, process, _ in self._daemons:
                if process.poll() is not None:
                    raise BenchError(f"{self.label}: {name} ended with status {process.returncode}: {self.tail()}")
            with visiting(namespace):
                return subprocess.run(["ip", "link", "show", device], capture_output=True, check=False).returncode == 0

        wait_until(there, START_TIMEOUT, f"{self.label}: its device {device} ({self.tail()})")

    def address_machines(self) -> None:
        """Both machines in one subnet, as on one Ethernet."""
        ip(self.guest, "address add 10.88.0.2/24 dev eth0")
        ip(self.ext, "address add 10.88.0.1/24 dev eth0")

    def bridge(self, device: str, queue: int = 1000) -> None:
        """Puts the tunnel's device of either host into a bridge with the cable to the host's machine."""
        for host, port in ((self.host_a, "sp0"), (self.host_b, "eth1")):
            self.wait_device(host, device)
            ip(host, "link add br0 type bridge mcast_snooping 0", f"link set {port} master br0",
               f"link set {device} mtu {self.guest_mtu} txqueuelen {queue} master br0 up", "link set br0 up")
        self.address_machines()

    def route(self, device_a: str, device_b: str) -> None:
        """Machines in subnets of their own, and routes through the tunnel's devices."""
        self.target = "10.88.1.1"
        for machine, number in ((self.guest, 2), (self.ext, 1)):
            ip(machine, f"address add 10.88.{number}.{number}/24 dev eth0", f"route add default via 10.88.{number}.254")
        for host, port, device, own, other in ((self.host_a, "sp0", device_a, 2, 1), (self.host_b, "eth1", device_b, 1, 2)):
            with visiting(host):
                pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")
            ip(host, f"address add 10.88.{own}.254/24 dev {port}", f"route add 10.88.{other}.0/24 dev {device}")

    def certificate(self, name: str) -> tuple[str, str]:
        """A key and a certificate signed by itself: paths. Made now, gone with the bench."""
        key, certificate = str(self.dir / f"{name}.key"), str(self.dir / f"{name}.crt")
        run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate])
        return key, certificate
