"""The image's health check: 0 where the service on this machine says that it is ready, 1 with the reason where not.

Sockets alone, since it runs every few seconds beside the service: python -I -S health.py
"""

import os
import socket
import sys

_PATIENCE_S = 4.0


def status(port: int, *, tls: bool) -> int:
    """Of GET /health/ready; OSError or ValueError where nobody answers, or something else does."""
    with socket.create_connection(("127.0.0.1", port), _PATIENCE_S) as plain:
        connection = _secured(plain) if tls else plain
        connection.sendall(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with connection.makefile("rb") as answer:
            return int(answer.readline(64).split()[1])


def _secured(plain: socket.socket) -> socket.socket:
    # Takes as long to import as all of the rest.
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # It asks itself, under a name that no certificate has.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(plain)


def main() -> str | int:
    """What `sys.exit` takes."""
    try:
        port = int(os.environ.get("FORETELL_PORT", "8000"))
        found = status(port, tls="FORETELL_TLS_CERT_FILE" in os.environ)
    except (OSError, ValueError, IndexError) as error:
        return f"not healthy: {error}"
    return 0 if found == 200 else f"not ready: {found}"


if __name__ == "__main__":
    sys.exit(main())
