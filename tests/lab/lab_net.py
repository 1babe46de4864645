"""The lab's cables.

        ext                     a machine on the guests' network: eth0 = 10.77.0.1/24
         | eth0
         | eth1 (uplink)                       [lan0, a bridge in the lab's own namespace, if every host has an uplink]
        hv1         hv2  ...    hvK
         | eth0      | eth0      | eth0        10.99.0.K/24, the underlay
        -+-----------+-----------+-  under0    a bridge in the lab's own namespace
"""

from collections.abc import Mapping

from lab_base import run

EXT = "ext"
EXT_ADDRESS = "10.77.0.1/24"
UNDERLAY_PREFIX = "10.99.0."


def underlay_address(host: str) -> str:
    """hvK -> 10.99.0.K"""
    return f"{UNDERLAY_PREFIX}{int(host.removeprefix('hv'))}"


def ip_batch(pid: int, lines: list[str]) -> None:
    """Runs `ip` commands in the network namespace of a process. Ids in `netns` are the caller's."""
    if lines:
        run(["nsenter", "-t", str(pid), "--net", "ip", "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))


def lay_out(root: int, hosts: Mapping[str, int], underlay_mtu: int, uplinks: str) -> None:
    """`root`: the lab's first process; `hosts`: holder of each host and of ext; `uplinks`: "first" or "all"."""
    hypervisors = [host for host in hosts if host != EXT]
    run(["nsenter", "-t", str(root), "--net", "sh", "-c", _SETTINGS])
    lines = [f"link add under0 mtu {underlay_mtu} type bridge", "link set under0 up"]
    for host in hypervisors:
        lines += _cable(f"u-{host}", "under0", hosts[host], "eth0", underlay_mtu)
    if uplinks == "all":
        lines += ["link add lan0 type bridge", "link set lan0 up"]
        for host in hypervisors:
            lines += _cable(f"l-{host}", "lan0", hosts[host], "eth1", 1500)
        lines += _cable("l-ext", "lan0", hosts[EXT], "eth0", 1500)
    else:
        lines += [f"link add eth1 netns {hosts[hypervisors[0]]} type veth peer name eth0 netns {hosts[EXT]}"]
    ip_batch(root, lines)
    for host in hypervisors:
        lines = [f"address add {underlay_address(host)}/24 dev eth0", "link set eth0 up"]
        ip_batch(hosts[host], lines + (["link set eth1 up"] if uplinks == "all" or host == hypervisors[0] else []))
    ip_batch(hosts[EXT], [f"address add {EXT_ADDRESS} dev eth0", "link set eth0 up"])


_SETTINGS = """
for kind in all default; do
    [ ! -e /proc/sys/net/ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/$kind/disable_ipv6
done
for table in iptables ip6tables arptables; do
    [ ! -e /proc/sys/net/bridge/bridge-nf-call-$table ] || echo 0 >/proc/sys/net/bridge/bridge-nf-call-$table
done
ip link set lo up
"""


def _cable(near: str, bridge: str, far_pid: int, far: str, mtu: int) -> list[str]:
    return [f"link add {near} mtu {mtu} type veth peer name {far} mtu {mtu} netns {far_pid}",
            f"link set {near} master {bridge} up"]
