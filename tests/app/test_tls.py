"""HTTPS: what is served with it, to whom, and what stops the start."""

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from models.store import Store
from tests.app.asking import BOUNDED, is_right, window_of
from tests.app.serving import Process, process, wait_until
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

in_each_way = pytest.mark.parametrize("processes", [0, 2])
"""Everything in one process, and an engine with two HTTP processes."""


class Certificates:
    """A certificate of an authority of its own, and what else is needed of both."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        issued.private_key_pem.write_to_path(self.key)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(self.certificate, append=True)
        self.trusting = ssl.create_default_context()
        authority.configure_trust(self.trusting)

    @property
    def settings(self) -> dict[str, Path]:
        """As the service takes them."""
        return {"TLS_CERT_FILE": self.certificate, "TLS_KEY_FILE": self.key}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model."""
    root = tmp_path_factory.mktemp("store")
    publish_tiny(Store(root), **BOUNDED)
    return root


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Those of the service."""
    return Certificates(tmp_path_factory.mktemp("tls"))


def url_of(service: Process) -> str:
    """Where it says that it listens; nothing before."""
    found = re.search(r"running on (https://[^ \"]+)", service.output)
    return found[1] if found else ""


@pytest.fixture(scope="module", params=[0, 2])
def secured(
    store: Path, certificates: Certificates, request: pytest.FixtureRequest
) -> Iterator[tuple[Process, httpx.URL]]:
    """A service with HTTPS, in one process and in several, that is ready; and its address."""
    with process(store, ready=False, HTTP_PROCESSES=request.param, **certificates.settings) as service:

        def is_ready() -> bool:
            assert service.running.poll() is None, service.output
            try:
                answer = httpx.get(f"{url_of(service)}/health/ready", verify=certificates.trusting)
            except (httpx.TransportError, httpx.UnsupportedProtocol):
                return False
            return answer.status_code == 200

        wait_until(is_ready)
        yield service, httpx.URL(url_of(service))


def test_https_answers(secured: tuple[Process, httpx.URL], certificates: Certificates) -> None:
    """Forecasts are right, small and large ones, on connections that are kept and on fresh ones."""
    _, url = secured
    with httpx.Client(base_url=url, verify=certificates.trusting, timeout=PATIENCE_S) as client:
        for seed in range(5):
            answer = client.post("/forecast?steps=3", json={"window": window_of(seed)})
            assert is_right(answer, window_of(seed), 3)
        windows = {"windows": [window_of(seed) for seed in range(500)]}
        large = client.post("/forecast?steps=20", json=windows)
    assert large.status_code == 200
    assert len(large.json()["forecasts"]) == 500


def test_another_authority_is_not_believed(secured: tuple[Process, httpx.URL]) -> None:
    """A client that trusts somebody else ends the handshake, and the service goes on."""
    _, url = secured
    context = ssl.create_default_context()
    trustme.CA().configure_trust(context)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{url}/health/live", verify=context)


def test_plain_http_is_refused(secured: tuple[Process, httpx.URL], certificates: Certificates) -> None:
    """Who speaks HTTP to that port gets no answer and an end; the log has no traceback, and HTTPS goes on."""
    service, url = secured
    with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE_S) as client:
        client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        except ConnectionResetError:
            answer = b""

    assert not answer.startswith(b"HTTP/")
    assert httpx.get(f"{url}/health/live", verify=certificates.trusting).status_code == 200
    assert "Traceback" not in service.output, service.output


@pytest.mark.parametrize(
    ("version", "accepted"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_are_refused(
    secured: tuple[Process, httpx.URL], certificates: Certificates, version: ssl.TLSVersion, accepted: bool
) -> None:
    """TLS 1.2 and 1.3 and nothing before."""
    _, url = secured
    context = ssl.create_default_context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    with socket.create_connection((url.host, url.port or 0), timeout=PATIENCE_S) as client:
        try:
            with context.wrap_socket(client) as wrapped:
                spoken = wrapped.version()
        except (ssl.SSLError, ConnectionResetError):
            spoken = None

    assert (spoken is not None) == accepted


# What stops the start


def without_key(certificates: Certificates, _: Path) -> dict[str, object]:
    """A certificate alone."""
    return {"TLS_CERT_FILE": certificates.certificate}


def without_certificate(certificates: Certificates, _: Path) -> dict[str, object]:
    """A key alone."""
    return {"TLS_KEY_FILE": certificates.key}


def not_there(certificates: Certificates, folder: Path) -> dict[str, object]:
    """A path that leads nowhere."""
    return {**certificates.settings, "TLS_CERT_FILE": folder / "nothing.pem"}


def of_another(certificates: Certificates, folder: Path) -> dict[str, object]:
    """The key of another certificate."""
    return {**certificates.settings, "TLS_KEY_FILE": Certificates(folder).key}


def not_pem(certificates: Certificates, folder: Path) -> dict[str, object]:
    """Something else."""
    file = folder / "cert.pem"
    file.write_text("certainly")
    return {**certificates.settings, "TLS_CERT_FILE": file}


def with_password(certificates: Certificates, folder: Path) -> dict[str, object]:
    """A key that takes a password."""
    key = serialization.load_pem_private_key(certificates.key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    kind = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, encryption))
    return {**certificates.settings, "TLS_KEY_FILE": folder / "key.pem"}


@in_each_way
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (without_key, "FORETELL_TLS_KEY_FILE is missing"),
        (without_certificate, "FORETELL_TLS_CERT_FILE is missing"),
        (not_there, "nothing.pem: no such file or directory"),
        (of_another, "not the key of the certificate"),
        (not_pem, "not PEM that can be used"),
        (with_password, "the key has a password"),
    ],
)
def test_wrong_files_stop_the_start(
    store: Path,
    certificates: Certificates,
    tmp_path: Path,
    processes: int,
    wrong: Callable[[Certificates, Path], dict[str, object]],
    says: str,
) -> None:
    """One line that names the setting, and the status 2: no service without HTTPS where it was asked for."""
    with process(store, ready=False, HTTP_PROCESSES=processes, **wrong(certificates, tmp_path)) as service:
        assert service.wait() == 2

    (line,) = service.output.splitlines()
    assert line.startswith("foretell: FORETELL_TLS_")
    assert says in line
