"""Two sites and the DTLS wire between them, with a guest on it, for the tests of one.

    ext -- hv1 (site a; Corm lab) ... underlay, MTU 1500 ... hv2 (site b; guest vm1)
                                   \\... hv3 (site a)
"""

import pathlib
import tempfile
import unittest

import lab_product as product
from banana_lab import Lab, LabError, Nic, Vm, wait_until

ADDRESS, SPIKE = "10.77.0.10", "hv2/vm1/net0"


def tunnel_state(lab: Lab, host: str, peer: str) -> dict:
    return next(one["tunnel"] for one in product.ask(lab, host, "peer.list")["peers"] if one["name"] == peer)


def wait_tunnels(lab: Lab, timeout: float = 20) -> None:
    """Until both ends have their session."""
    ends = (("hv1", "hv2"), ("hv2", "hv1"))
    try:
        wait_until(lambda: all(tunnel_state(lab, host, peer)["state"] == "up" for host, peer in ends), timeout,
                   "the sessions", 0.05)
    except LabError as error:
        told = [f"{host}: {tunnel_state(lab, host, peer)}\n{tunnel_log(lab, host)[-3000:]}" for host, peer in ends]
        raise LabError("\n".join([str(error), *told])) from None


def tunnel_log(lab: Lab, host: str) -> str:
    return (lab.host(host).root / "run/banana/tunneld.log").read_text(errors="replace")


class DtlsCase(unittest.TestCase):
    lab: Lab
    pki: pathlib.Path  # with the CA's key
    timed = False  # whether its tests time the guest

    @classmethod
    def setUpClass(cls) -> None:
        cls.pki = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="banana-pki-")))
        cls.lab = cls.enterClassContext(product.own_lab(cls, 3, sites=["a", "b", "a"], pki=cls.pki))
        product.wait_whole(cls.lab)
        wait_tunnels(cls.lab)
        product.create_corm(cls.lab, "hv2")
        cls.lab.start_vm(Vm("vm1", [Nic(network="banana-lab", address=f"{ADDRESS}/24")],
                            spare_addresses=("10.77.0.12/24",), timed=cls.timed), "hv2")
        product.wait_tidy(cls.lab)

    def bring(self, host: str) -> None:
        product.bring(self.lab, "vm1", host)
        wait_tunnels(self.lab)
        self.assertTrue(product.reaches(self.lab, ADDRESS))
