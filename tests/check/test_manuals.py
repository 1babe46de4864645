"""Man pages are well formed and tell every command and option; bash's completion finds them."""

import os
import pathlib
import re
import subprocess
import unittest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("BANANA_BUILD") or TOP / "build-check")
PAGES = TOP / "doc/man"
COMPLETION = TOP / "packaging/bash-completion/banana"

COMPLETE = """
. "$0"
program=$1
shift
COMP_WORDS=(banana "$@") COMP_CWORD=$#
_banana "$program"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def ran(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode or done.stderr:
        raise AssertionError(f"{' '.join(map(str, words))}: status {done.returncode}: {done.stderr}")
    return done.stdout


def commands(*noun: str) -> list[str]:
    said = ran(BUILD / "banana", *noun, "--help")
    return re.findall(r"(?m)^  ([a-z][a-z-]*) ", said.partition("\nSubcommands:\n")[2].partition("\n\n")[0])


class ManualsTest(unittest.TestCase):
    def page(self, name: str) -> str:
        """As a reader sees it, in one line."""
        return " ".join(ran("groff", "-mandoc", "-Tascii", "-P-cbou", "-ww", PAGES / name).split())

    def test_every_page_is_well_formed(self) -> None:
        pages = sorted(path.name for path in PAGES.iterdir())
        self.assertEqual(pages, ["banana-hook.8", "banana-tunneld.8", "banana.1", "bananad.8"])
        for name in pages:
            with self.subTest(name):
                self.assertRegex(self.page(name), r"NAME .* SYNOPSIS .* DESCRIPTION .* SEE ALSO")

    def test_options(self) -> None:
        for name in ("banana.1", "bananad.8", "banana-tunneld.8"):
            program = name.partition(".")[0]
            options = re.findall(r"(?m)^  (?:-h,)?(--[a-z-]+)", ran(BUILD / program, "--help"))
            self.assertIn("--help", options)
            told = self.page(name)
            for option in options:
                if program == "banana" or option not in ("--help", "--version"):
                    self.assertIn(f"{option} ", told, name)

    def test_commands(self) -> None:
        told = self.page("banana.1")
        nouns = commands()
        self.assertIn("corm", nouns)
        for noun in nouns:
            for verb in commands(noun) or [""]:
                self.assertRegex(told, rf"\b{noun} (\{{[a-z |]*)?{verb}", f"banana {noun} {verb}")

    def completed(self, *words: str) -> set[str]:
        return set(ran("bash", "-c", COMPLETE, COMPLETION, BUILD / "banana", *words).split())

    def test_completion(self) -> None:
        self.assertTrue(set(commands()) | {"--json", "--help"} <= self.completed(""))
        self.assertEqual(self.completed("co"), {"corm", "connect"})
        self.assertEqual(self.completed("corm", "s"), {"show"})
        self.assertEqual(self.completed("--json", "corm", "create", "lab", "--m"), {"--mtu", "--move-addresses"})
        self.assertEqual(self.completed("pki", "issue", "hv1", "--role", ""), {"controller", "tunnel"})
        self.assertIn("lo", self.completed("corm", "create", "lab", "--uplink", ""))


if __name__ == "__main__":
    unittest.main(verbosity=2)
