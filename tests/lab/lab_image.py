"""The guest's kernel and initramfs, made from Debian packages and kept in the cache.

    <cache>/kernel-<package>/{vmlinuz,modules/*.ko}   out of linux-image-*-cloud-amd64, by dpkg-deb -x
    <cache>/traffic-<hash>/traffic                    the traffic program, static
    <cache>/initramfs-<hash>.gz                       busybox, the modules, traffic and guest-init

A name with a hash is complete when it exists: it is written beside and renamed, so labs may build at the same time.
"""

import contextlib
import fcntl
import gzip
import hashlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from lab_base import LAB_DIR, TOP, LabError, cache_dir, run, say

# In the order in which they must be loaded.
MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "failover",
           "net_failover", "virtio_net")
META_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX = pathlib.Path("/bin/busybox")


@dataclass(frozen=True)
class Image:
    kernel: pathlib.Path
    initramfs: pathlib.Path
    traffic: pathlib.Path


def build(refresh: bool = False) -> Image:
    """All three, made if need be. Takes a minute the first time (a download), nothing after."""
    cache = cache_dir()
    with _locked(cache):
        traffic = _traffic(cache)
        kernel = _kernel(cache, refresh)
        return Image(kernel / "vmlinuz", _initramfs(cache, kernel, traffic), traffic)


def traffic_program() -> pathlib.Path:
    """The traffic program alone."""
    cache = cache_dir()
    with _locked(cache):
        return _traffic(cache)


@contextlib.contextmanager
def _locked(cache: pathlib.Path) -> Iterator[None]:
    with open(cache / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _hash(*paths: pathlib.Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _traffic(cache: pathlib.Path) -> pathlib.Path:
    folder = TOP / "tests" / "traffic"
    sources = sorted(path for path in folder.glob("*.cpp") if not path.name.startswith("test_"))
    built = cache / f"traffic-{_hash(*sources, *sorted(folder.glob('*.h')), TOP / 'src/base/fd.h')}" / "traffic"
    if not built.exists():
        say("lab: building the traffic program")
        built.parent.mkdir(exist_ok=True)
        partial = built.with_suffix(".new")
        run(["g++", "-std=c++20", "-O2", "-Wall", "-static", "-pthread", f"-I{TOP / 'src'}", *map(str, sources), "-o",
             str(partial)], timeout=300)
        partial.rename(built)
    return built


def _version(path: pathlib.Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _kernel(cache: pathlib.Path, refresh: bool) -> pathlib.Path:
    """The newest kernel in the cache; one is fetched if there is none, or on request."""
    present = sorted(cache.glob("kernel-*"), key=_version)
    if present and not refresh:
        return present[-1]
    package = _newest_package()
    kernel = cache / f"kernel-{package}"
    if kernel.exists():
        return kernel
    say(f"lab: fetching {package} for the guests (kept in {cache}, not installed)")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        work = pathlib.Path(scratch)
        run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package], timeout=600, cwd=work)
        run(["dpkg-deb", "-x", str(next(work.glob("*.deb"))), str(work / "root")], timeout=120)
        made = work / "kernel"
        (made / "modules").mkdir(parents=True)
        shutil.copy(next((work / "root/boot").glob("vmlinuz-*")), made / "vmlinuz")
        for module in MODULES:
            found = next((work / "root/lib/modules").rglob(f"{module}.ko"), None)
            if found is None:
                raise LabError(f"{package} has no module {module}.ko: the lab's module list needs a look")
            shutil.copy(found, made / "modules")
        made.rename(kernel)
    return kernel


def _newest_package() -> str:
    """The cloud kernel that the distribution's meta-package names."""
    listing = run(["apt-cache", "depends", META_PACKAGE], check=False).stdout
    match = re.search(r"Depends: (linux-image-\S+-cloud-amd64)", listing)
    if not match:
        raise LabError(f"apt knows no {META_PACKAGE}: run `apt-get update`, and see that the machine's "
                       "/etc/apt/sources.list names Debian 12")
    return match.group(1)


def _initramfs(cache: pathlib.Path, kernel: pathlib.Path, traffic: pathlib.Path) -> pathlib.Path:
    init = LAB_DIR / "guest-init"
    if not BUSYBOX.exists():
        raise LabError(f"{BUSYBOX} is missing: apt-get install busybox-static")
    modules = [kernel / "modules" / f"{module}.ko" for module in MODULES]
    made = cache / f"initramfs-{_hash(init, BUSYBOX, traffic, *modules)}.gz"
    if made.exists():
        return made
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        root = pathlib.Path(scratch) / "root"
        (root / "bin").mkdir(parents=True)
        (root / "modules").mkdir()
        for source, target in ((BUSYBOX, "bin/busybox"), (traffic, "bin/traffic"), (init, "init")):
            shutil.copy(source, root / target)
            os.chmod(root / target, 0o755)
        for module in modules:
            shutil.copy(module, root / "modules")
        (root / "modules/order").write_text("".join(f"{module}\n" for module in MODULES))
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        archive = pathlib.Path(scratch) / "archive"
        run(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-F", str(archive)], cwd=root,
            stdin="".join(f"{name}\n" for name in names))
        partial = pathlib.Path(scratch) / "packed"
        partial.write_bytes(gzip.compress(archive.read_bytes(), 6))
        partial.rename(made)
    _forget_old(cache, "initramfs-*.gz", made)
    _forget_old(cache, "traffic-*", traffic.parent)
    return made


def _forget_old(cache: pathlib.Path, pattern: str, keep: pathlib.Path) -> None:
    """Leaves the newest few: a running lab may still be using the one before this."""
    by_age = sorted((path for path in cache.glob(pattern) if path != keep), key=lambda path: path.stat().st_mtime)
    for path in by_age[:-4]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
