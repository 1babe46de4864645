"""What a host of the lab runs: libvirt's daemons and bananad; the text of their configuration, and their start."""

import pathlib
import uuid
from typing import Protocol

from lab_base import TOP, LabError, build_dir, cache_dir, run
from lab_net import underlay_address

PEER_PORT = 7471
BANANAD_LOG = "/run/bananad.log"
PROGRAMS = ("bananad", "banana-tunneld", "banana", "banana-hook")


class Host(Protocol):
    """A host as this module needs it; banana_lab.Lab hands them out."""

    name: str
    lab_name: str
    site: str
    root: pathlib.Path  # its file system, as seen from outside


def write(host: Host, path: str, text: str, mode: int = 0o644) -> None:
    """Writes a file of the host."""
    target = host.root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    target.chmod(mode)


def configure_libvirt(host: Host, hooks: pathlib.Path | None) -> None:
    """Before libvirtd starts: it looks for hooks then, and never again."""
    address = underlay_address(host.name)
    identity = uuid.uuid5(uuid.NAMESPACE_DNS, f"{host.name}.{host.lab_name}.banana-lab")
    write(host, "/etc/libvirt/libvirtd.conf", f"""\
host_uuid = "{identity}"
listen_tls = 0
listen_tcp = 1
listen_addr = "{address}"
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
""")
    write(host, "/etc/libvirt/qemu.conf", f"""\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
dynamic_ownership = 0
remember_owner = 0
migration_host = "{address}"
""")
    write(host, "/etc/libvirt/virtlogd.conf", "")
    if hooks:
        for hook in ("qemu", "network"):
            write(host, f"/etc/libvirt/hooks/{hook}", (hooks / hook).read_text(), 0o755)


def built() -> bool:
    return all((build_dir() / program).exists() for program in PROGRAMS)


def require_built() -> pathlib.Path:
    missing = [program for program in PROGRAMS if not (build_dir() / program).exists()]
    if missing:
        raise LabError(f"no {', '.join(missing)} in {build_dir()}: build first (./bootstrap && mkdir -p build && "
                       "cd build && ../configure && make), name another build directory in BANANA_BUILD, or ask for a "
                       "lab without bananad (--no-bananad)")
    return build_dir()


def bananad_toml(host: Host, hosts: list[Host]) -> str:
    """The daemon's configuration: the one place to adapt when its keys change."""
    lines = [
        f'host = "{host.name}"',
        f'site = "{host.site}"',
        f'underlay = "{underlay_address(host.name)}"',
        f"port = {PEER_PORT}",
        "",
        "[tls]",
        'ca = "/etc/banana/pki/ca.crt"',
        f'certificate = "/etc/banana/pki/{host.name}.crt"',
        f'key = "/etc/banana/pki/{host.name}.key"',
        "",
        "[libvirt]",
        'uri = "qemu:///system"',
    ]
    for peer in hosts:
        if peer.name != host.name:
            lines += ["", "[[peer]]", f'name = "{peer.name}"', f'address = "{underlay_address(peer.name)}"',
                      f"port = {PEER_PORT}"]
    return "\n".join(lines) + "\n"


def make_pki(directory: pathlib.Path, hosts: list[Host]) -> None:
    """The cluster's CA, and for each host a certificate and one for its tunnel, by the product's own commands."""
    banana = str(require_built() / "banana")
    run([banana, "pki", "init", "--dir", str(directory)])
    for host in hosts:
        for role in ("controller", "tunnel"):
            run([banana, "pki", "issue", host.name, "--role", role, "--dir", str(directory)])


def configure_banana(host: Host, hosts: list[Host], pki: pathlib.Path) -> None:
    programs = require_built()
    write(host, "/etc/banana/bananad.toml", bananad_toml(host, hosts))
    target = host.root / "etc/banana/pki"
    target.mkdir(mode=0o700, exist_ok=True)
    # A host gets what is its own and the CA's certificate; never the CA's key.
    for path in sorted(pki.rglob("*")):
        if path.is_file() and (path.name.startswith(f"{host.name}.") or path.name.startswith(f"{host.name}-")
                               or path.name == "ca.crt"):
            (target / path.name).write_bytes(path.read_bytes())
            (target / path.name).chmod(0o600)
    for hook in ("qemu", "network"):
        stub = (TOP / f"libvirt-hooks/{hook}.in").read_text().replace("@hookexecdir@", str(programs))
        write(host, f"/etc/libvirt/hooks/{hook}.d/50-banana", stub, 0o755)


def lend_capabilities(host: Host) -> None:
    """QEMU's capabilities as an earlier lab found them: libvirt checks them, and asks QEMU (2 s) if they are stale."""
    source = cache_dir() / "capabilities"
    target = host.root / "var/cache/libvirt/qemu/capabilities"
    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.xml"):
        (target / path.name).write_bytes(path.read_bytes())


def keep_capabilities(host: Host) -> None:
    target = cache_dir() / "capabilities"
    target.mkdir(exist_ok=True)
    for path in (host.root / "var/cache/libvirt/qemu/capabilities").glob("*.xml"):
        kept = target / path.name
        if not kept.exists() or kept.read_bytes() != path.read_bytes():
            partial = target / f"{path.name}.{host.lab_name}.new"
            partial.write_bytes(path.read_bytes())
            partial.rename(kept)
