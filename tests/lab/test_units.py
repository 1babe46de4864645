#!/usr/bin/python3
"""The units as they are shipped, under a real systemd: they start, find each other, take new settings, and end. Root.

    hv1 (site one; Corm lab, etherstub) eth0 ... eth0 hv2 (site two; Spike box)
"""

import json
import pathlib
import sys
import tempfile
import unittest
from typing import Any

sys.dont_write_bytecode = True

import lab_systemd  # noqa: E402
from lab_base import build_dir, run, wait_until  # noqa: E402
from lab_systemd import Machine  # noqa: E402

PATIENCE = 10
PKI = "/etc/banana/pki"
CONFIG = "/etc/banana/bananad.toml"
UNITS = ("bananad", "banana-tunneld")
MISCONFIGURED, NO_CREDENTIALS = "2", "243"
NOBODY = 65534
CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect(sys.argv[1])"


def config(number: int, more: str = "") -> str:
    other = 3 - number
    return (f'host = "hv{number}"\nsite = "site{number}"\nunderlay = "192.0.2.{number}"\n[libvirt]\nuri = ""\n'
            f'[[peer]]\nname = "hv{other}"\naddress = "192.0.2.{other}"\n[tunnel]\nlanes = 1\n{more}')


@unittest.skipIf(lab_systemd.missing(), lab_systemd.missing())
class UnitsTest(unittest.TestCase):
    hosts: tuple[Machine, Machine]

    @classmethod
    def setUpClass(cls) -> None:
        ca = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="banana-pki-")))
        banana = str(build_dir() / "banana")
        run([banana, "pki", "init", "--dir", str(ca)])
        cls.hosts = Machine("hv1"), Machine("hv2")
        for number, host in enumerate(cls.hosts, 1):
            cls.addClassCleanup(host.down)
            (host.files / "etc/banana").mkdir()
            (host.files / "etc/banana/bananad.toml").write_text(config(number))
            for role in ("controller", "tunnel"):
                run([banana, "pki", "issue", host.name, "--dir", ca, "--out", host.files / "etc/banana/pki", "--role",
                     role])
            host.up()
        cls.cable(*cls.hosts)

    @classmethod
    def cable(cls, first: Machine, second: Machine) -> None:
        run(["nsenter", "-t", str(first.systemd), "--net", "ip", "link", "add", "eth0", "type", "veth", "peer", "name",
             "eth0", "netns", str(second.systemd)])
        for number, host in enumerate((first, second), 1):
            host.run("ip", "address", "add", f"192.0.2.{number}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")

    def setUp(self) -> None:
        self.hv1, self.hv2 = self.hosts
        for host in self.hosts:
            host.systemctl("start", "bananad")  # which wants the other
            self.wait_ready(host)

    def tunnel(self, host: Machine) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(host.run("banana", "--json", "status").stdout)["tunnel"]
        return found

    def wait_ready(self, host: Machine) -> None:
        try:
            wait_until(lambda: self.tunnel(host)["state"] == "ready", PATIENCE, f"the tunnel of {host.name}")
        except Exception as error:
            raise AssertionError(f"{error}: {self.tunnel(host)}\n{host.log()[-2000:]}") from None

    def test_carries_a_dtls_wire(self) -> None:
        self.hv1.run("banana", "corm", "create", "lab", "--etherstub", "--force")
        self.addCleanup(self.hv1.run, "banana", "corm", "delete", "lab")
        wait_until(lambda: "hv1/lab" in self.hv2.run("banana", "corm", "list").stdout, PATIENCE, "the Corm at hv2")
        self.hv2.run("ip", "link", "add", "box", "type", "veth", "peer", "name", "inner")
        self.addCleanup(self.hv2.run, "ip", "link", "delete", "box")
        self.hv2.run("banana", "spike", "adopt", "box", "--device", "box")
        self.addCleanup(self.hv2.run, "banana", "spike", "delete", "box")
        wait_until(lambda: self.hv2.run("banana", "connect", "box", "lab", check=False).returncode == 0, PATIENCE,
                   "a DTLS session")
        self.addCleanup(self.hv2.run, "banana", "disconnect", "box")
        self.assertEqual(json.loads(self.hv2.run("banana", "--json", "wire", "list").stdout)["wires"][0]["format"],
                         "dtls")
        self.assertIn("3 came back", self.hv2.run("banana", "ping", "box").stdout)

    def test_tunneld_is_nobody_in_particular(self) -> None:
        """And its socket is nobody's but its own and root's."""
        pid, = self.hv1.shown("banana-tunneld", "MainPID")
        status = self.hv1.run("cat", f"/proc/{pid}/status").stdout
        self.assertNotIn("Uid:\t0\t", status)
        self.assertIn("CapEff:\t0000000000000000", status)
        done = self.hv1.run("setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "/usr/bin/python3", "-c",
                            CONNECT, "/run/banana-tunneld/control.sock", check=False)
        self.assertIn("PermissionError", done.stderr)

    def test_others_are_told_what_to_do(self) -> None:
        nobody = ("setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups")
        for words, status, told in (
                ((*nobody, "banana", "status"), 4, r"Permission denied; only root may ask it"),
                ((*nobody, "bananad"), 2, r"bananad must run as root"),
                (("bananad", "--run-dir", "/run/other"), 1, r"state\.db: another bananad uses it")):
            with self.subTest(words):
                done = self.hv1.run(*words, check=False)
                self.assertEqual(done.returncode, status, done.stderr)
                self.assertRegex(done.stderr, told)

    def test_reload(self) -> None:
        self.addCleanup(self.hv1.systemctl, "reload", "bananad")
        self.addCleanup(self.hv1.write, CONFIG, config(1))
        self.hv1.write(CONFIG, config(1, '[log]\nlevel = "debug"\n'))
        self.hv1.systemctl("reload", "bananad")
        self.assertRegex(self.hv1.log(), r"reloaded: .*level")
        self.hv1.write(CONFIG, "host = 1\n")
        self.assertNotEqual(self.hv1.run("systemctl", "reload", "bananad", check=False).returncode, 0)
        self.assertEqual(self.hv1.shown("bananad", "ActiveState"), ["active"])

    def test_other_settings_of_the_tunnel(self) -> None:
        """bananad ends tunneld, which is another user's; systemd starts it."""
        self.addCleanup(self.hv1.systemctl, "restart", "bananad")
        self.addCleanup(self.hv1.write, CONFIG, config(1))
        before = self.hv1.shown("banana-tunneld", "MainPID")
        self.hv1.write(CONFIG, config(1, "rekey_seconds = 1000\n"))
        self.hv1.systemctl("restart", "bananad")
        self.wait_ready(self.hv1)
        self.assertNotEqual(self.hv1.shown("banana-tunneld", "MainPID"), before)

    def test_killed(self) -> None:
        for unit in UNITS:
            before, = self.hv1.shown(unit, "MainPID")

            def again(unit: str = unit, before: str = before) -> bool:
                state, pid = self.hv1.shown(unit, "SubState", "MainPID")
                return state == "running" and pid != before
            self.hv1.systemctl("kill", "--signal=KILL", unit)
            wait_until(again, PATIENCE, f"{unit} again")
            self.wait_ready(self.hv1)

    def fails(self, unit: str, status: str, words: str) -> None:
        """For good: another attempt would do no better."""
        self.addCleanup(self.hv1.systemctl, "reset-failed", check=False)
        self.hv1.systemctl("restart", unit, check=False)
        self.assertEqual(self.hv1.shown(unit, "ActiveState", "ExecMainStatus", "NRestarts"), ["failed", status, "0"])
        self.assertRegex(self.hv1.log(), words)

    def without(self, name: str) -> None:
        self.hv1.run("mv", f"{PKI}/{name}", f"{PKI}/{name}.gone")
        self.addCleanup(self.hv1.run, "mv", f"{PKI}/{name}.gone", f"{PKI}/{name}")

    def test_wrong_configuration(self) -> None:
        self.addCleanup(self.hv1.write, CONFIG, config(1))
        self.hv1.write(CONFIG, "host = 1\n")
        self.fails("bananad", MISCONFIGURED, r"bananad\.toml:1")

    def test_another_name_of_the_host(self) -> None:
        """It would take its own Corms for another host's, and sweep their bridges."""
        self.hv1.run("banana", "corm", "create", "lab", "--etherstub", "--force")
        self.addCleanup(self.hv1.run, "banana", "corm", "delete", "lab")
        links = self.hv1.run("ip", "-o", "link").stdout
        self.addCleanup(self.setUp)
        self.addCleanup(self.hv1.write, CONFIG, config(1))
        self.hv1.write(CONFIG, config(1).replace("hv1", "hvx"))
        self.hv1.run("sh", "-c", f"for end in crt key; do cp -p {PKI}/hv1.$end {PKI}/hvx.$end; done")
        self.fails("bananad", MISCONFIGURED, r"state\.db has the records of host hv1, .*host = \"hvx\"")
        self.assertEqual(self.hv1.run("ip", "-o", "link").stdout, links)

    def test_no_certificate(self) -> None:
        self.without("hv1.crt")
        self.fails("bananad", MISCONFIGURED, rf"banana pki issue hv1.*: read {PKI}/hv1\.crt: No such file")

    def test_no_key_in_the_key(self) -> None:
        self.without("hv1.key")
        self.hv1.write(f"{PKI}/hv1.key", "no key\n")
        self.hv1.run("chmod", "600", f"{PKI}/hv1.key")
        self.fails("bananad", MISCONFIGURED, rf"read key {PKI}/hv1\.key: there is none in it")

    def test_tunnel_without_certificate(self) -> None:
        self.without("hv1-tunnel.crt")
        self.fails("banana-tunneld", NO_CREDENTIALS, ".")  # systemd's to tell
        self.hv1.write(f"{PKI}/hv1-tunnel.crt", "no certificate\n")
        self.fails("banana-tunneld", MISCONFIGURED, "read certificate .*: there is none in it")

    def test_stop(self) -> None:
        self.hv1.run("banana", "corm", "create", "lab", "--etherstub", "--force")
        self.addCleanup(self.hv1.run, "banana", "corm", "delete", "lab")
        self.addCleanup(self.setUp)
        links = self.hv1.run("ip", "-o", "link").stdout
        self.hv1.systemctl("stop", *UNITS)
        self.assertEqual([self.hv1.shown(unit, "ActiveState", "Result") for unit in UNITS],
                         [["inactive", "success"]] * 2)
        self.assertNotRegex(self.hv1.run("ps", "-e", "-o", "comm").stdout, "banana")
        sockets = self.hv1.run("find", "/run/banana", "/run/banana-tunneld", "-type", "s", check=False).stdout
        self.assertEqual(sockets, "")
        self.assertIn("bn-lab", links)
        self.assertEqual(self.hv1.run("ip", "-o", "link").stdout, links)


if __name__ == "__main__":
    unittest.main(verbosity=2)
