"""Peers of bench-dtls that carry Ethernet frames: OpenVPN, vtun, tinc."""

import pathlib

from bench_peers import HOST_A, HOST_B, Row
from bench_world import run

OPENVPN_PORT, VTUN_PORT, TINC_PORT = 1194, 5000, 655
BUFFER = 4 << 20  # of sockets; the kernel takes less


class OpenVpn(Row):
    """OpenVPN 2.6, tap over UDP, AES-128-GCM in TLS mode. Measured and no better: mssfix 0 with a smaller MTU of the
    guests, outer fragments (mssfix 0), `fragment`, longer queues (README)."""

    key, label, programs = "openvpn", "OpenVPN", ("openvpn", "openssl")
    def start(self) -> None:
        ends = {}
        for name in ("server", "client"):
            key, certificate = self.certificate(name)
            text = run(["openssl", "x509", "-in", certificate, "-noout", "-fingerprint", "-sha256"])
            ends[name] = (key, certificate, text.strip().partition("=")[2])
        for role, other, host, remote in (("server", "client", self.host_b, HOST_A),
                                          ("client", "server", self.host_a, HOST_B)):
            lines = ["dev tun0", "dev-type tap", "proto udp4", f"port {OPENVPN_PORT}", f"remote {remote}",
                     f"tls-{role}", *(["dh none"] if role == "server" else []), f"key {ends[role][0]}",
                     f"cert {ends[role][1]}", f"peer-fingerprint {ends[other][2]}", "data-ciphers AES-128-GCM",
                     "keepalive 10 60", "verb 1", "fast-io",
                     f"sndbuf {BUFFER}", f"rcvbuf {BUFFER}"]
            self.daemon(host, ["openvpn", "--config", self.file(f"{role}.conf", "\n".join(lines) + "\n")])
        self.bridge("tun0")


class Vtun(Row):
    """vtun, Ethernet over UDP, neither encrypted nor compressed. It has no say over its socket's buffer, and does not clamp
    TCP's segments: with 1 500 each datagram is cut in two."""

    key, label, programs, guest_mtu = "vtun", "vtun, plain", ("vtund", "openssl"), 1400

    def start(self) -> None:
        pathlib.Path("/run/lock").mkdir(exist_ok=True)
        secret = run(["openssl", "rand", "-hex", "16"]).strip()
        common = ("wire {{\n passwd {};\n type ether;\n proto udp;\n device tun0;\n encrypt no;\n compress no;\n"
                  " keepalive yes;\n stat no;\n persist keep;\n}}\n").format(secret)
        options = f"options {{\n port {VTUN_PORT};\n ifconfig /bin/true;\n}}\n"
        path = self.file("vtund.conf", options + common)
        self.daemon(self.host_b, ["vtund", "-n", "-s", "-f", path])
        self.daemon(self.host_a, ["vtund", "-n", "-p", "-f", path, "wire", HOST_B])
        self.bridge("tun0")


class Tinc(Row):
    """tinc 1.0, a switch of Ethernet frames. It has no AEAD cipher: its manual advises CBC."""

    key, label, programs = "tinc", "tinc", ("tincd",)

    def start(self) -> None:
        ends = (("hv1", self.host_b, HOST_B), ("hv2", self.host_a, HOST_A))
        public = {name: self._keys(name, address) for name, _, address in ends}
        for name, host, _ in ends:
            for other, text in public.items():
                self.file(f"{name}/hosts/{other}", text)
            self.file(f"{name}/tinc-up", "")
            self.daemon(host, ["tincd", "-D", "-c", str(self.dir / name), f"--pidfile={self.dir}/{name}.pid"])
        self.bridge("tun0")

    def _keys(self, name: str, address: str) -> str:
        """Makes a host's configuration and key; what the other has to know of it."""
        lines = [f"Name = {name}", "Mode = switch", "Interface = tun0", "AddressFamily = ipv4", f"Port = {TINC_PORT}",
                 f"UDPRcvBuf = {BUFFER}", f"UDPSndBuf = {BUFFER}"]
        if name == "hv2":
            lines.append("ConnectTo = hv1")
        self.file(f"{name}/tinc.conf", "\n".join(lines) + "\n")
        self.file(f"{name}/hosts/{name}", f"Address = {address} {TINC_PORT}\nCipher = aes-128-cbc\n")
        run(["tincd", "-c", str(self.dir / name), "-K2048"])
        return (self.dir / name / "hosts" / name).read_text(encoding="ascii")
