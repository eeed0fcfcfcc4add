"""HTTPS: the service's certificate and its key."""

import ssl
from pathlib import Path

from app.settings import Settings, SettingsError


def context_of(settings: Settings) -> ssl.SSLContext | None:
    """What connections are wrapped in; None where they are not. SettingsError where a file cannot be used."""
    certificate, key = settings.tls_cert_file, settings.tls_key_file
    if certificate is None or key is None:
        return None
    _readable(certificate, "FORETELL_TLS_CERT_FILE")
    _readable(key, "FORETELL_TLS_KEY_FILE")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Renegotiation costs the server far more than the client, and nothing here needs it.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A key with a password is refused: without this, OpenSSL would ask for it at the terminal, and wait.
        context.load_cert_chain(certificate, key, _no_password)
    except ValueError as error:
        raise SettingsError(f"FORETELL_TLS_KEY_FILE={key}: {error}") from None
    except ssl.SSLError as error:
        what = "not the key of the certificate" if "MISMATCH" in str(error.reason) else "not PEM that can be used"
        if what.startswith("not the"):
            raise SettingsError(f"FORETELL_TLS_KEY_FILE={key}: {what}") from None
        raise SettingsError(f"FORETELL_TLS_CERT_FILE={certificate} with {key}: {what}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key has a password; the service has nobody to ask for it")


def _readable(file: Path, name: str) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise SettingsError(f"{name}={file}: {(error.strerror or str(error)).lower()}") from None
