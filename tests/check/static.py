"""Static checks: each raises StepFailed with what it found in a log."""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable

from build import Build
from steps import TOP, StepFailed, must, run

SOURCES = ("src", "qmp", "libvirt-hooks", "tests")
SCHEMAS = TOP / "xml-schemas"
EXPOSED = {"banana-tunneld.service": 20}  # tenths: 1.6, mostly for its network; without its sandbox 9.6

# cppcheck 2.10 does not know coroutines: for it they are functions, and what it then says about a function's end is
# wrong; g++ -Wall looks after that. A coroutine takes its parameters by value, since it outlives the caller's.
CPPCHECK = ("--std=c++20", "--language=c++", "--enable=warning,performance,portability", "--inline-suppr", "--quiet",
            "--error-exitcode=1", "-Dco_return=return", "-Dco_await=", "-Dco_yield=", "--suppress=missingReturn",
            "--suppress=passedByValue")


def _fresh(build: Build, name: str) -> pathlib.Path:
    log = build.log(name)
    log.unlink(missing_ok=True)
    return log


def _files(folders: Iterable[str], *endings: str) -> list[pathlib.Path]:
    return sorted(path for folder in folders for path in (TOP / folder).rglob("*") if path.name.endswith(endings))


def formatted(build: Build) -> None:
    files = _files(SOURCES, ".cpp", ".h", ".bpf.c")
    must(["clang-format", "--dry-run", "-Werror", *files], _fresh(build, "clang-format"), 120)


def analysed(build: Build) -> None:
    files = [path.relative_to(TOP) for path in _files(SOURCES[:3], ".cpp")]
    command = ["cppcheck", f"-j{os.cpu_count() or 1}", *CPPCHECK, "-I", "src", "-I", ".", *files]
    must(command, _fresh(build, "cppcheck"), 300)


def shell(build: Build) -> None:
    """Every file that begins with #!/bin/sh, and bash's completion."""
    named = [TOP / name for name in ("bootstrap", "quickstart", "check", ".ci/run")]
    files = [path for path in named + _files((*SOURCES, "packaging"), "") if path.is_file()]
    scripts = [path for path in files if path.read_bytes().startswith(b"#!/bin/sh\n")]
    log = _fresh(build, "shellcheck")
    must(["shellcheck", *scripts], log, 120)
    must(["shellcheck", "--shell=bash", TOP / "packaging/bash-completion/banana"], log, 60)


def units(build: Build) -> None:
    """systemd understands every line of the units, as they will be installed; and it finds tunneld's well shut in."""
    log = _fresh(build, "systemd-analyze")
    if not shutil.which("systemd-analyze"):
        raise StepFailed("no systemd-analyze")
    with tempfile.TemporaryDirectory(prefix="banana-units-") as directory:
        files = []
        for template in sorted((TOP / "packaging").glob("*.service.in")):
            text = re.sub(r"@s?bindir@/[a-z-]+", "/bin/true", template.read_text(encoding="utf-8"))
            files.append(pathlib.Path(directory) / template.stem)
            files[-1].write_text(text.replace("@docdir@", "/usr/share/doc/banana"), encoding="utf-8")
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True,
                              check=False, timeout=60)
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        # An unknown key is no failure for it, but told.
        told = [line for line in (done.stdout + done.stderr).splitlines() if directory in line]
        if done.returncode or told or not files:
            raise StepFailed(f"systemd-analyze verify: {'; '.join(told) or done.stderr.strip() or 'no units'}", log)
        for name, most in EXPOSED.items():
            must(["systemd-analyze", "security", "--offline=true", f"--threshold={most}", "--no-pager",
                  f"{directory}/{name}"], log, 60, contained=False)


def xml_examples(build: Build) -> None:
    """Metadata alone is validated by xmllint; a whole domain or network (refused/) is the reader's business."""
    log = _fresh(build, "xmllint")
    wrong = []
    for folder, wanted in (("valid", 0), ("invalid", 3)):
        examples = sorted((SCHEMAS / "examples" / folder).glob("*.xml"))
        for example in examples:
            schema = SCHEMAS / f"{re.split('-', example.name)[0]}.rng"
            if run(["xmllint", "--nonet", "--noout", "--relaxng", schema, example], log, 30, contained=False) != wanted:
                wrong.append(f"{folder}/{example.name}")
        if not examples:
            wrong.append(f"no examples in {folder}/")
    if not shutil.which("xmllint"):
        raise StepFailed("no xmllint")
    if wrong:
        raise StepFailed(f"these do not do as they should: {', '.join(wrong)}", log)
