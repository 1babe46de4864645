"""Certificates that the product does not make: of other dates."""

import pathlib
import shutil
import subprocess
import time

CONFIGURATION = """\
[ca]
default_ca=d
[d]
database={place}/index
new_certs_dir={place}
default_md=sha256
policy=p
rand_serial=yes
unique_subject=no
copy_extensions=copy
[p]
organizationName=optional
organizationalUnitName=optional
commonName=supplied
"""


def redated(certificate: pathlib.Path, ca: pathlib.Path, place: pathlib.Path, begin: float,
            end: float) -> pathlib.Path:
    """The same certificate, but valid between two times (seconds from now), signed by the CA in folder `ca`; made in
    `place`, with its key and ca.crt beside it."""
    place.mkdir(exist_ok=True)
    (place / "index").write_text("")
    (place / "conf").write_text(CONFIGURATION.format(place=place))
    key = shutil.copy(certificate.with_suffix(".key"), place)
    shutil.copy(ca / "ca.crt", place)
    dates = [time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + at)) for at in (begin, end)]
    target = place / certificate.name
    openssl("x509", "-x509toreq", "-in", certificate, "-signkey", key, "-copy_extensions", "copyall", "-out",
            place / "request")
    openssl("ca", "-batch", "-notext", "-config", place / "conf", "-cert", ca / "ca.crt", "-keyfile", ca / "ca.key",
            "-in", place / "request", "-out", target, "-startdate", dates[0], "-enddate", dates[1])
    return target


def openssl(*words: object) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"openssl {words[0]}: {done.stderr.strip()}")
