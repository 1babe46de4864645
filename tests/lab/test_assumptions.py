#!/usr/bin/python3
"""tests/assumptions/*.py: what the product relies on in libvirt, each script a test of its own."""

import pathlib
import subprocess
import unittest

ASSUMPTIONS = pathlib.Path(__file__).resolve().parent.parent / "assumptions"


class Assumptions(unittest.TestCase):
    def test_scripts(self) -> None:
        scripts = sorted(ASSUMPTIONS.glob("*.py"))
        self.assertTrue(scripts, f"no script in {ASSUMPTIONS}")
        for script in scripts:
            with self.subTest(script.name):
                run = subprocess.run(["/usr/bin/python3", "-B", script], stdin=subprocess.DEVNULL, capture_output=True,
                                     text=True, timeout=300, check=False)
                self.assertEqual(run.returncode, 0, run.stdout + run.stderr)


if __name__ == "__main__":
    unittest.main()
