"""Each folder uses only what design says it may: held from its #include lines. The first line of a folder's
Makefile.inc says the same in words."""

import pathlib
import re
import unittest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^">]+)[">]', re.MULTILINE)

# folder: the folders that it may include from, besides itself
MAY_USE = {
    "base": "",
    "netlink": "base",
    "xconnect": "base",
    "model": "base",
    "qmp": "base",
    "pki": "base",
    "wiring": "base netlink xconnect model",
    "tunnel": "base model pki",
    "peer": "base model pki",
    "registry": "base model",
    "migration": "base netlink xconnect model qmp wiring tunnel pki peer registry",
    "cli": "base pki",
    "libvirt-hooks": "base",
    "controller": "base netlink xconnect model qmp wiring tunnel pki peer registry migration libvirt-hooks",
}
# A library that one folder wraps for all: nobody else includes it.
WRAPPED = {
    r"netlink/(?!\w+\.h$).*|libnl.*|linux/(rtnetlink|if_link|if_addr|neighbour)\.h": {"netlink"},
    r"bpf/.*": {"xconnect"},
    r"nftables/.*": {"wiring"},
    r"sqlite3\.h": {"registry"},
    r"openssl/.*": {"pki", "peer", "tunnel", "migration"},
    r"libvirt/.*": {"controller", "qmp"},
    r"libxml/.*": {"libvirt-hooks", "controller"},
    r"CLI/.*": {"cli", "controller", "tunnel"},
    r"toml\+\+/.*": {"controller"},
}


def folder_of(path: pathlib.Path) -> str:
    parts = path.relative_to(TOP).parts
    return parts[1] if parts[0] == "src" else parts[0]


def sources() -> list[pathlib.Path]:
    return sorted(path for top in ("src", "qmp", "libvirt-hooks") for path in (TOP / top).rglob("*")
                  if path.suffix in (".cpp", ".h", ".c"))


def target_of(source: pathlib.Path, name: str) -> str | None:
    """The folder of ours that an included file lies in; None if it is no file of ours."""
    for root in (source.parent, TOP / "src", TOP):
        path = (root / name).resolve()
        if path.is_file() and TOP in path.parents:
            return folder_of(path)
    made = re.fullmatch(r"(\w+)/\w+\.skel\.h", name)  # made by the build
    return made.group(1) if made else None


class LayeringTest(unittest.TestCase):
    def test_every_folder_has_its_rule(self) -> None:
        self.assertEqual({folder_of(path) for path in sources()} - set(MAY_USE), set())
        self.assertEqual({path.name for path in (TOP / "src").iterdir() if path.is_dir()} - set(MAY_USE), set())
        self.assertGreater(len(sources()), 100)

    def test_folders_use_only_what_they_may(self) -> None:
        seen, wrong = 0, []
        for path in sources():
            here = folder_of(path)
            allowed = {here, *MAY_USE[here].split()}
            for name in INCLUDE.findall(path.read_text(encoding="utf-8")):
                there = target_of(path, name)
                seen += there is not None
                if there is not None and there not in allowed:
                    wrong.append(f"{path.relative_to(TOP)} includes {name}: {here} may use "
                                 f"{MAY_USE[here] or 'nothing'}")
        self.assertEqual(wrong, [])
        self.assertGreater(seen, 300, "includes are not recognised any more")

    def test_libraries_stay_in_the_folder_that_wraps_them(self) -> None:
        wrong = []
        for path in sources():
            for name in INCLUDE.findall(path.read_text(encoding="utf-8")):
                if target_of(path, name) is None:
                    wrong += [f"{path.relative_to(TOP)} includes <{name}>: that is for {', '.join(sorted(homes))}"
                              for pattern, homes in WRAPPED.items()
                              if re.fullmatch(pattern, name) and folder_of(path) not in homes]
        self.assertEqual(wrong, [])

    def test_no_cycles(self) -> None:
        """A folder's rule never leads back to it."""
        def reaches(folder: str, seen: frozenset[str]) -> set[str]:
            found = set()
            for used in MAY_USE[folder].split():
                self.assertNotIn(used, seen, f"{folder} and {used} use each other")
                found |= {used} | reaches(used, seen | {used})
            return found

        for folder in MAY_USE:
            self.assertNotIn(folder, reaches(folder, frozenset({folder})))


if __name__ == "__main__":
    unittest.main(verbosity=2)
