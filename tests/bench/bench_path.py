"""What a path carries: the product's beside a hand-made one, in turn.

        guest machine | host of the guest                        | host of the uplink              | machine on the uplink
  bn    bn-g eth0 ----|- sp0  cross-connect -> bnx ~ eth0 -------|- eth0 ~ bnx -> bnc [Corm] eth1 -|- eth0 bn-e
  hand  hd-g eth0 ----|- sp0 [bridge] vx0 ~ eth0 ----------------|- eth0 ~ vx0 [bridge] eth1 ------|- eth0 hd-e

Both have as many namespaces, the same veth pairs and MTUs. The product's hosts are hv2 and hv1, with a bananad each; the
hand-made ones (hd-b, hd-a) have none, and no packet filter.
"""

import statistics
import subprocess
from dataclasses import dataclass

from bench_world import (START_TIMEOUT, UNDERLAY_MTU, BenchError, Daemon, build_dir, cable, inside, ip, make_namespace,
                         wait_settled, wait_until)

WARM_MS, MEASURE_MS = 200, 500
PORT = 5001
GUEST, EXT = "10.88.0.2", "10.88.0.1"


@dataclass(frozen=True)
class Load:
    label: str
    kind: str  # "tcp" or "udp"
    size: int  # of UDP payloads or TCP writes
    unit: str
    limit: float  # the ratio that it must reach


LOADS = (Load("TCP, one flow", "tcp", 128 * 1024, "Gbit/s", 0.97),
         Load("UDP 1300 B", "udp", 1300, "kpps", 0.95),
         Load("UDP 64 B", "udp", 64, "kpps", 0.95))


@dataclass(frozen=True)
class Path:
    name: str
    guest: str  # namespaces
    ext: str


PRODUCT, HAND = Path("banana", "bn-g", "bn-e"), Path("hand-made", "hd-g", "hd-e")


def lay_hosts(guest: str, guest_host: str, uplink_host: str, ext: str) -> None:
    """Four machines in a row and the cables between them."""
    for name in (guest, guest_host, uplink_host, ext):
        make_namespace(name)
    cable(guest, "eth0", guest_host, "sp0")
    cable(guest_host, "eth0", uplink_host, "eth0", UNDERLAY_MTU)
    cable(uplink_host, "eth1", ext, "eth0")
    ip(guest_host, "address add 10.99.0.2/24 dev eth0")
    ip(uplink_host, "address add 10.99.0.1/24 dev eth0")
    ip(guest, f"address add {GUEST}/24 dev eth0")
    ip(ext, f"address add {EXT}/24 dev eth0")


def lay_hand_made() -> None:
    lay_hosts("hd-g", "hd-b", "hd-a", "hd-e")
    for host, port, local, remote in (("hd-b", "sp0", "10.99.0.2", "10.99.0.1"),
                                      ("hd-a", "eth1", "10.99.0.1", "10.99.0.2")):
        ip(host, "link add br0 mtu 1500 type bridge mcast_snooping 0",
           f"link add vx0 mtu 1500 type vxlan id 88 local {local} remote {remote} dstport 4789 nolearning",
           "link set vx0 master br0 up", f"link set {port} master br0", "link set br0 up")


def wire_product(uplink_host: Daemon, guest_host: Daemon) -> None:
    """What a user does: a Corm, an adopted netdev, a wire."""
    control = uplink_host.control()
    control.call("corm.create", name="path", kind="uplink", device="eth1")
    control.close()
    control = guest_host.control()
    wait_until(lambda: any(corm["name"].endswith("/path") for corm in control.call("corm.list")["corms"]),
               START_TIMEOUT, "the guest's host to know Corm path")
    control.call("spike.adopt", name="path", device="sp0")
    wire = control.call("connect", spike="path", corm="path")
    control.close()
    if wire.get("format") != "vxlan":
        raise BenchError(f"the product made a {wire.get('format')} wire, not a VXLAN one")
    wait_settled(uplink_host.control(), guest_host.control())


def measure(path: Path, load: Load, to_guest: bool) -> float:
    """What arrives: Gbit/s of TCP, thousands of UDP packets a second."""
    program = str(build_dir() / "bench-load")
    sender, receiver = (path.ext, path.guest) if to_guest else (path.guest, path.ext)
    words = [program, "recv", load.kind, str(PORT), "1", str(WARM_MS), str(MEASURE_MS)]
    with subprocess.Popen(inside(receiver, words), stdout=subprocess.PIPE, text=True) as receiving:
        assert receiving.stdout
        if receiving.stdout.readline().strip() != "READY":
            raise BenchError(f"{path.name}, {load.label}: the receiver did not start")
        words = [program, "send", load.kind, str(PORT), "0", GUEST if to_guest else EXT, str(load.size),
                 str((WARM_MS + MEASURE_MS) / 1000 + 0.1)]
        sent = subprocess.run(inside(sender, words), check=False, timeout=60)
        words_out = receiving.stdout.readline().split()
    if sent.returncode or receiving.returncode or len(words_out) != 3:
        raise BenchError(f"{path.name}, {load.label}: the load program failed")
    packets, size, elapsed = (int(word) for word in words_out)
    return size * 8 / elapsed if load.kind == "tcp" else packets * 1e6 / elapsed


@dataclass
class Row:
    load: Load
    direction: str
    product: list[float]
    hand: list[float]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios: the two of a round follow each other, so a machine that is slower for a
        while does not count."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.product, self.hand, strict=True))

    @property
    def good(self) -> bool:
        return self.ratio >= self.load.limit

    def text(self) -> str:
        return (f"{self.load.label:<14} {self.direction:<10} {statistics.median(self.product):8.2f} "
                f"{statistics.median(self.hand):9.2f} {self.load.unit:<7} {self.ratio:6.3f}  >= {self.load.limit:.2f}  "
                f"{'PASS' if self.good else 'FAIL'}")


HEADER = f"{'load':<14} {'direction':<10} {'banana':>8} {'hand-made':>9} {'':<7} {'ratio':>6}"


def compare(rounds: int) -> list[Row]:
    """All loads both ways, the two paths in turn, who is first changing from round to round."""
    rows = []
    for load in LOADS:
        for to_guest in (False, True):
            row = Row(load, "to guest" if to_guest else "to uplink", [], [])
            for number in range(rounds + 1):
                order = ((PRODUCT, row.product), (HAND, row.hand))
                for path, results in order if number % 2 else reversed(order):
                    value = measure(path, load, to_guest)
                    if number:  # the first round warms both up
                        results.append(value)
            rows.append(row)
            print(row.text(), flush=True)
    return rows
