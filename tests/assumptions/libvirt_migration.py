#!/usr/bin/python3
"""What the controller relies on in libvirt around networks and migrations; a lab of two hosts with libvirt alone, 30 s.

Run by hand or by ./check; root. Ends with status 1 and says which assumption does not hold.
"""

import pathlib
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "lab"))

from banana_lab import Lab, Nic, Vm  # noqa: E402

# On the destination of a migration: asks the *other* host's libvirtd (asking one's own in a hook would deadlock).
HOOK = """#!/bin/sh
[ "$2" = prepare ] || [ "$2" = migrate ] || exit 0
read -r me </etc/hostname
other=hv1; [ "$me" = hv1 ] && other=hv2
{ echo "$2"; timeout 5 virsh -c qemu+tcp://$other/system domjobinfo "$1" --rawstats; } >>/run/hook.log 2>&1 </dev/null
exit 0
"""
METADATA = "<metadata><banana:network xmlns:banana='urn:banana:1' corm='hv1/lab'/></metadata>"


def network(extra: str = "", metadata: str = METADATA) -> str:
    return (f"<network><name>banana-lab</name>{metadata}<forward mode='bridge'/><bridge name='bn-lab'/>{extra}"
            "</network>")


failures = 0


def holds(what: str, condition: bool, shown: str = "") -> None:
    global failures
    failures += not condition
    print(f"{'ok' if condition else 'NOT ok'}  {what}{'' if condition else ': ' + shown}", flush=True)


def networks(lab: Lab) -> None:
    define = lambda xml: lab.exec("hv1", "virsh", "net-define", "/dev/stdin", stdin=xml, check=False)
    refused = define(network("<mtu size='9000'/>"))
    holds("<mtu> is refused on a network with forward mode 'bridge'",
          refused.returncode != 0 and "mtu size only allowed" in refused.stderr, refused.stdout + refused.stderr)
    for host in lab.hosts:
        if host == "ext":
            continue
        lab.exec(host, "ip", "link", "add", "bn-lab", "mtu", "9000", "type", "bridge")  # and stays down
        lab.exec(host, "virsh", "net-define", "/dev/stdin", stdin=network())
        lab.virsh(host, "net-start", "banana-lab")
    holds("a network's metadata is kept", "corm=\"hv1/lab\"" in lab.virsh("hv1", "net-dumpxml", "banana-lab"))


def guest(lab: Lab) -> None:
    lab.start_vm(Vm("vm1", [Nic(network="banana-lab", address="10.77.0.11/24")]), "hv1")
    link = lab.exec("hv1", "ip", "-o", "link", "show", "master", "bn-lab").stdout
    holds("a guest starts on a bridge that is down, and the bridge stays down",
          "vnet" in link and "state DOWN" in lab.exec("hv1", "ip", "-o", "link", "show", "bn-lab").stdout, link)
    holds("its tap takes the bridge's MTU", "mtu 9000" in link, link)
    command = lab.exec("hv1", "sh", "-c", "tr '\\0' '\\n' </proc/$(pidof qemu-system-x86_64)/cmdline").stdout
    holds("but its virtio-net is not told (no host_mtu)", "virtio-net-pci" in command and "host_mtu" not in command)
    uuid = lab.virsh("hv1", "net-uuid", "banana-lab").strip()
    changed = network(metadata=METADATA.replace("hv1/lab", "hv1/other")).replace(
        "<metadata>", f"<uuid>{uuid}</uuid><metadata>")
    lab.exec("hv1", "virsh", "net-define", "/dev/stdin", stdin=changed)
    live, inactive = lab.virsh("hv1", "net-dumpxml", "banana-lab"), lab.virsh("hv1", "net-dumpxml", "banana-lab",
                                                                             "--inactive")
    holds("redefining a running network leaves the running one alone", "hv1/lab" in live and "hv1/other" in inactive)


def migration(lab: Lab) -> None:
    xml = "<domain><spike interface='net0' name='hv1/vm1/net0'/></domain>"
    lab.virsh("hv1", "metadata", "vm1", "urn:banana:1", "--key", "banana", "--live", "--config", "--set", xml)
    for source, target, options in (("hv1", "hv2", []), ("hv2", "hv1", ["--p2p"])):
        lab.exec(target, "rm", "-f", "/run/hook.log")
        lab.virsh(source, "migrate", "--live", "--persistent", *options, "vm1", f"qemu+tcp://{target}/system")
        log = lab.exec(target, "cat", "/run/hook.log").stdout
        kind = " ".join(options) or "by virsh"
        holds(f"at the destination's migrate and prepare hooks the source has a job MIGRATION_OUT ({kind})",
              log.count("operation: 5") == 2, log)
        for which in ("--live", "--config"):
            kept = lab.virsh(target, "metadata", "vm1", "urn:banana:1", which)
            holds(f"metadata written live and persistent is {which[2:]} on the destination", "hv1/vm1/net0" in kept, kept)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="banana-hooks-") as directory:
        hooks = pathlib.Path(directory)
        (hooks / "qemu").write_text(HOOK)
        (hooks / "network").write_text("#!/bin/sh\nexit 0\n")
        with Lab(hosts=2, bananad=False, name="libvirt-migration", hooks=hooks) as lab:
            networks(lab)
            guest(lab)
            migration(lab)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
