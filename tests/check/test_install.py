"""`make install` puts there what it should, and nothing else; `make dist` packs every file of the checkout."""

import os
import pathlib
import subprocess
import tarfile
import tempfile
import unittest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("BANANA_BUILD") or TOP / "build-check")
NOT_PACKED = {".gitignore", ".gitattributes"}

# README's prefixes. The mode is the last word.
INSTALLED = """
etc/libvirt/hooks/network.d/50-banana 755
etc/libvirt/hooks/qemu.d/50-banana 755
usr/bin/banana 755
usr/lib/libvirt/banana-hook 755
usr/lib/systemd/system/banana-tunneld.service 644
usr/lib/systemd/system/bananad.service 644
usr/sbin/banana-tunneld 755
usr/sbin/bananad 755
usr/share/banana/schemas/domain.rng 644
usr/share/banana/schemas/network.rng 644
usr/share/banana/schemas/types.rng 644
usr/share/bash-completion/completions/banana 644
usr/share/doc/banana/README.md 644
usr/share/doc/banana/architecture.md 644
usr/share/doc/banana/bananad.toml.example 644
usr/share/doc/banana/dtls-wire.md 644
usr/share/doc/banana/manual.md 644
usr/share/man/man1/banana.1 644
usr/share/man/man8/banana-hook.8 644
usr/share/man/man8/banana-tunneld.8 644
usr/share/man/man8/bananad.8 644
"""


def make(*words: str, variables: dict[str, str] | None = None) -> None:
    options = [f"{name}={value}" for name, value in (variables or {}).items()]
    command = ["make", "-s", "-f", TOP / "tests/check/unity.mk", *words, *options]
    done = subprocess.run(command, cwd=BUILD, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"make {' '.join(words)}: status {done.returncode}: {done.stdout[-2000:]}"
                             f"{done.stderr[-2000:]}")


class InstallTest(unittest.TestCase):
    maxDiff = None

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="banana-install-")
        self.addCleanup(scratch.cleanup)
        self.root = pathlib.Path(scratch.name)

    def files(self) -> list[str]:
        return sorted(f"{path.relative_to(self.root)} {path.stat().st_mode & 0o777:o}" for path in self.root.rglob("*")
                      if not path.is_dir())

    def test_install_and_uninstall(self) -> None:
        where = {"DESTDIR": str(self.root), "prefix": "/usr", "sysconfdir": "/etc", "localstatedir": "/var",
                 "systemdsystemunitdir": "/usr/lib/systemd/system"}
        make("install", variables=where)
        self.assertEqual(self.files(), INSTALLED.split("\n")[1:-1])
        hook = (self.root / "etc/libvirt/hooks/qemu.d/50-banana").read_text()
        self.assertIn("lib/libvirt/banana-hook", hook)
        self.assertNotIn(str(BUILD), hook)
        unit = (self.root / "usr/lib/systemd/system/bananad.service").read_text()
        self.assertRegex(unit, r"(?m)^Before=(.* )?libvirtd\.service( |$)", "autostarted guests must find bananad")
        make("uninstall", variables=where)
        self.assertEqual(self.files(), [])

    def test_every_file_is_packed(self) -> None:
        make("dist", variables={"distdir": "banana-test"})
        archive = BUILD / "banana-test.tar.xz"
        self.addCleanup(archive.unlink)
        with tarfile.open(archive) as packed:
            names = {name.partition("/")[2] for name in packed.getnames()}
        self.assertIn("configure", names)
        self.assertEqual([name for name in names if "__pycache__" in name], [])
        listed = subprocess.run(["git", "-c", "safe.directory=*", "ls-files"], cwd=TOP, capture_output=True, text=True,
                                check=False)
        if listed.returncode:
            self.skipTest("this is no git checkout")
        tracked = {name for name in listed.stdout.split() if pathlib.Path(name).name not in NOT_PACKED
                   and (TOP / name).exists()}
        self.assertEqual(sorted(tracked - names), [])

    def test_what_builds_leave_is_not_packed(self) -> None:
        """As a build in the source directory leaves it in folders that are packed whole."""
        strays = ("tests/relay/.deps/relay.Po", "tests/relay/.dirstamp", "tests/relay/relay.o",
                  "tests/lab/__pycache__/lab.pyc")
        for name in (*strays, "tests/relay/relay.cpp"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).touch()
        make("dist-hook", variables={"distdir": str(self.root)})
        self.assertEqual(self.files(), ["check 755", "tests/relay/relay.cpp 644"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
