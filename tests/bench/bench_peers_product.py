"""The project's own rows of bench-dtls: a netdev adopted by `spike adopt`, a Corm with an uplink, and the wire between the
two that the row names. Each row has its own two hosts with a bananad each, without libvirt; the DTLS wire's have a
banana-tunneld each, started by bananad, with a certificate of role `tunnel`."""

import json
import pathlib
import subprocess
from collections.abc import Sequence

from bench_peers import HOST_A, HOST_B, START_TIMEOUT, Row
from bench_world import BenchError, Control, Daemon, build_dir, inside, ip, run, wait_settled, wait_until

SPIKE, CORM = "guest", "bench"


class Host(Daemon):
    """bananad as a row needs it: more in its configuration, all its files below the row's directory."""

    def __init__(self, row: Row, namespace: str, name: str, peer: str, addresses: tuple[str, str],
                 more: Sequence[str]) -> None:
        self.host = name
        self.run_dir = row.dir / name
        self.run_dir.mkdir(mode=0o700)
        pki = row.dir / "pki"
        lines = [f'host = "{name}"', f'site = "{name}"', f'underlay = "{addresses[0]}"', "[tls]", f'ca = "{pki}/ca.crt"',
                 f'certificate = "{pki}/{name}.crt"', f'key = "{pki}/{name}.key"', "[libvirt]", 'uri = ""', *more,
                 "[[peer]]", f'name = "{peer}"', f'address = "{addresses[1]}"']
        config = row.file(f"{name}.toml", "\n".join(lines) + "\n")
        self.log = self.run_dir / "log"
        words = [str(build_dir() / "bananad"), "--config", config, "--state-dir", str(self.run_dir / "state"),
                 "--run-dir", str(self.run_dir), "--bpf-dir", f"/sys/fs/bpf/{row.key}-{name}"]
        with open(self.log, "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(inside(namespace, words), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = self._process.pid
        self._wait()


class Wire(Row):
    """A wire of the project; `wire` is its format."""

    wire = ""
    own = ("bananad", "banana")

    def missing(self) -> str | None:
        absent = [name for name in self.own if not (build_dir() / name).exists()]
        return f"not built: no {', '.join(absent)} in {build_dir()}" if absent else super().missing()

    def tunnel_lines(self, _name: str) -> list[str]:
        return []

    def issue(self, banana: str, pki: pathlib.Path, name: str) -> None:
        run([banana, "pki", "issue", name, "--dir", str(pki)])

    def start(self) -> None:
        banana, pki = str(build_dir() / "banana"), self.dir / "pki"
        run([banana, "pki", "init", "--dir", str(pki)])
        for name in ("hv1", "hv2"):
            self.issue(banana, pki, name)
        for path in list(pki.rglob("hv?*.*")):
            if path.parent != pki:
                path.rename(pki / path.name)
        self.uplink_host = Host(self, self.host_b, "hv1", "hv2", (HOST_B, HOST_A), self.tunnel_lines("hv1"))
        self.spike_host = Host(self, self.host_a, "hv2", "hv1", (HOST_A, HOST_B), self.tunnel_lines("hv2"))
        control = self.uplink_host.control()
        wait_until(lambda: all(peer.get("state") == "up" for peer in control.call("peer.list")["peers"]), START_TIMEOUT,
                   f"{self.label}: the two bananads to connect")
        control.call("corm.create", name=CORM, kind="uplink", device="eth1", mtu=self.guest_mtu)
        control.close()
        control = self.spike_host.control()
        control.call("spike.adopt", name=SPIKE, device="sp0")
        control.close()
        self.connect()
        self.address_machines()

    def connect(self) -> None:
        """As a user does: by the command."""
        socket = str(self.spike_host.run_dir / "control.sock")
        words = [str(build_dir() / "banana"), "--socket", socket, "connect", SPIKE, CORM, "--wire", self.wire]
        said = ""

        def connected() -> bool:
            nonlocal said
            done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
            said = done.stderr.strip()
            return done.returncode == 0

        # A tunnel that is being started is no error of the wire's.
        try:
            wait_until(connected, START_TIMEOUT, f"{self.label}: connect")
        except BenchError as error:
            raise BenchError(f"{error}: {said}") from None
        shown = self.shown(self.spike_host)
        if shown.get("format") != self.wire:
            raise BenchError(f"{self.label}: the product made another wire: {json.dumps(shown)[:300]}")
        wait_settled(self.uplink_host.control(), self.spike_host.control())

    def shown(self, host: Host) -> dict:
        """`banana wire show` of the row's wire, as that host has it."""
        control: Control = host.control()
        wires = control.call("wire.list")["wires"]
        shown = control.call("wire.show", name=wires[0]["name"])
        control.close()
        return shown

    def tail(self) -> str:
        return " | ".join(host.tail()[-400:] for host in (getattr(self, "uplink_host", None),
                                                          getattr(self, "spike_host", None)) if host)


class VxlanWire(Wire):
    """The VXLAN wire; the guests' MTU leaves room for its header, as a larger frame would be cut by the underlay."""

    key, label, wire, guest_mtu = "vxlan", "VXLAN wire", "vxlan", 1450


class DtlsWire(Wire):
    """The DTLS wire. Guests have an Ethernet's 1500, the Corm's default."""

    key, label, wire = "dtls", "DTLS wire", "dtls"
    own = ("bananad", "banana", "banana-tunneld")
    poll = "auto"

    def tunnel_lines(self, name: str) -> list[str]:
        pki = self.dir / "pki"
        return ["[tunnel]", f'certificate = "{pki}/{name}-tunnel.crt"', f'key = "{pki}/{name}-tunnel.key"',
                f'socket = "{self.dir}/{name}/tunnel.sock"', "spawn = true", f'poll = "{self.poll}"']

    def issue(self, banana: str, pki: pathlib.Path, name: str) -> None:
        super().issue(banana, pki, name)
        run([banana, "pki", "issue", name, "--role", "tunnel", "--dir", str(pki)])


class DtlsInterrupt(DtlsWire):
    """The same without polling: each wake-up by an interrupt, for the comparison of the two modes."""

    key, label, poll = "dtls-int", "DTLS wire, poll never", "never"
