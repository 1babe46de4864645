"""Peers of bench-dtls that carry IP packets: the hosts route between their machine and the tunnel. The machines' MTU is
the tunnel's, so that nothing is cut."""

import base64
import hashlib
import os
import subprocess

from bench_peers import HOST_A, HOST_B, Row
from bench_world import BenchError, inside, ip, run, wait_until

WIREGUARD_PORT, OCSERV_PORT = 51820, 443
WIREGUARD_MTU, OCSERV_MTU = 1420, 1400
NEWER = "BANANA_WIREGUARD_GO"


class WireguardGo(Row):
    """wireguard-go as Debian has it: ChaCha20-Poly1305, there is nothing else."""

    key, label, programs, guest_mtu = "wg", "wireguard-go", ("wireguard-go", "wg"), WIREGUARD_MTU

    def program(self) -> str:
        return "wireguard-go"

    def start(self) -> None:
        ends = ((self.host_b, f"{self.key}1", HOST_A), (self.host_a, f"{self.key}2", HOST_B))
        secrets = [run(["wg", "genkey"]).strip() for _ in ends]
        public = [run(["wg", "pubkey"], stdin=secret).strip() for secret in secrets]
        for number, (host, device, remote) in enumerate(ends):
            self.daemon(host, [self.program(), "-f", device], {"LOG_LEVEL": "error"})
            self.wait_device(host, device)
            key = self.file(f"{device}.key", secrets[number] + "\n")
            words = ["wg", "set", device, "listen-port", str(WIREGUARD_PORT), "private-key", key, "peer",
                     public[1 - number], "allowed-ips", "0.0.0.0/0", "endpoint", f"{remote}:{WIREGUARD_PORT}"]
            # Its control socket may come after its device.
            wait_until(lambda: subprocess.run(inside(host, words), capture_output=True, check=False).returncode == 0, 5,
                       f"{self.label}: {' '.join(words[:3])}")
            ip(host, f"address add 10.77.0.{number + 1}/24 dev {device}",
               f"link set {device} mtu {WIREGUARD_MTU} up")
        self.route(ends[1][1], ends[0][1])


class NewerWireguardGo(WireguardGo):
    """A newer build, with UDP GSO, whose path the environment names."""

    key, label, programs = "wgnew", "wireguard-go, newer", ("wg",)

    def program(self) -> str:
        return os.environ[NEWER]

    def missing(self) -> str | None:
        path = os.environ.get(NEWER)
        if not path:
            return f"no path in {NEWER}"
        return super().missing() if os.access(path, os.X_OK) else f"no program {path}"


class Ocserv(Row):
    """ocserv and openconnect, AnyConnect's protocol over DTLS 1.2, AES-128-GCM."""

    key, label, programs, guest_mtu = "ocserv", "ocserv, DTLS", ("ocserv", "ocpasswd", "openconnect", "openssl"), OCSERV_MTU

    def start(self) -> None:
        key, certificate = self.certificate("server")
        password = run(["openssl", "rand", "-hex", "16"]).strip()
        passwords = str(self.dir / "passwd")
        run(["ocpasswd", "-c", passwords, "bench"], stdin=f"{password}\n{password}\n")
        lines = [f'auth = "plain[passwd={passwords}]"', f"tcp-port = {OCSERV_PORT}", f"udp-port = {OCSERV_PORT}",
                 "run-as-user = root", "run-as-group = root", f"socket-file = {self.dir}/socket",
                 f"server-cert = {certificate}", f"server-key = {key}", "isolate-workers = false", "max-clients = 2",
                 "device = vpns", "ipv4-network = 10.77.0.0", "ipv4-netmask = 255.255.255.0", f"mtu = {OCSERV_MTU + 80}",
                 'tls-priorities = "NORMAL:-CIPHER-ALL:+AES-128-GCM"', "use-occtl = false", "keepalive = 300", "dpd = 90",
                 f"pid-file = {self.dir}/pid", "predictable-ips = true", "cisco-client-compat = false", "log-level = 1"]
        self.daemon(self.host_b, ["ocserv", "-f", "-c", self.file("ocserv.conf", "\n".join(lines) + "\n")])
        self._listening()
        client = self.file("client.sh", f"""\
exec openconnect --passwd-on-stdin -u bench --interface=tun0 --script /bin/true --non-inter --servercert \
pin-sha256:{pin(certificate)} https://{HOST_B}:{OCSERV_PORT}/ <<END
{password}
END
""")
        self.daemon(self.host_a, ["sh", client])
        self.wait_device(self.host_a, "tun0")
        self.wait_device(self.host_b, "vpns0")
        ip(self.host_a, "address add 10.77.0.2/24 dev tun0", f"link set tun0 mtu {OCSERV_MTU} up")
        self.route("tun0", "vpns0")
        wait_until(lambda: "Established DTLS connection" in self.tail(), 10,
                   f"{self.label}: DTLS beside TLS ({self.tail()})")
        if "AES-128-GCM" not in self.tail().rpartition("Established DTLS connection")[2]:
            raise BenchError(f"{self.label}: another cipher than AES-128-GCM: {self.tail()}")

    def _listening(self) -> None:
        words = inside(self.host_b, ["ss", "-Hltn", f"sport = :{OCSERV_PORT}"])
        wait_until(lambda: bool(run(words).strip()), 10, f"{self.label}: ocserv to listen ({self.tail()})")


def pin(certificate: str) -> str:
    """SHA-256 of a certificate's public key, as openconnect wants it."""
    lines = run(["openssl", "x509", "-in", certificate, "-noout", "-pubkey"]).splitlines()
    return base64.b64encode(hashlib.sha256(base64.b64decode("".join(lines[1:-1]))).digest()).decode()
