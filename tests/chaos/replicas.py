"""Two replicas of the service behind nginx, restarted one after the other.

with nginx(folder, [first.address[1], second.address[1]]) as address: ...
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.app.serving import Process, process, wait_until
from tests.chaos.faults import MissingError

_CONFIGURATION = """\
daemon off;
{user}
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    client_body_buffer_size 4m;
    client_max_body_size 64m;
    upstream foretell {{
{servers}
        keepalive 32;
        # Shorter than the service's own: so it is nginx that closes what nobody uses.
        keepalive_timeout 3s;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        location / {{
            proxy_pass http://foretell;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            # A forecast changes nothing: it can be asked for twice. A 503 says that this replica cannot now.
            proxy_next_upstream error timeout http_503 non_idempotent;
            proxy_next_upstream_tries 3;
            proxy_read_timeout 60s;
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, ports: list[int]) -> Iterator[tuple[str, int]]:
    """nginx in front of replicas on these ports; its address. MissingError where there is no nginx."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise MissingError("nginx (Debian package nginx-light)")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = found.getsockname()
    # A replica that is away refuses at once, and the other one is asked. Marked as failed, both might be at a time.
    servers = "\n".join(f"        server 127.0.0.1:{port} max_fails=0;" for port in ports)
    # A master that is root gives its workers to nobody, who may not write here.
    user = "" if os.geteuid() else "user root;"
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(user=user, servers=servers, port=address[1]))
    with (folder / "nginx.log").open("wb") as log:
        running = subprocess.Popen(
            [program, "-p", str(folder), "-c", str(configuration), "-e", "stderr"], stdout=log, stderr=log
        )
    try:
        wait_until(lambda: _listens(address) or running.poll() is not None)
        assert running.poll() is None, (folder / "nginx.log").read_text()
        yield address
    finally:
        running.send_signal(signal.SIGQUIT)
        running.wait()


def _listens(address: tuple[str, int]) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(address) == 0


class Replicas:
    """Several instances of the service on one store, each of which keeps its port."""

    def __init__(self, store: Path, number: int, **settings: object) -> None:
        self._store = store
        self._settings = settings
        self._stacks = [ExitStack() for _ in range(number)]
        self.running = [self._start(stack, 0) for stack in self._stacks]

    @property
    def ports(self) -> list[int]:
        """Where they listen."""
        return [service.address[1] for service in self.running]

    def restart(self, number: int) -> int:
        """End one by SIGTERM, wait for its end, and start another on its port until it is ready; its exit status."""
        service = self.running[number]
        port = service.address[1]
        service.signal(signal.SIGTERM)
        status = service.wait()
        self._stacks[number].close()
        self.running[number] = self._start(self._stacks[number], port)
        return status

    def close(self) -> None:
        """End all of them."""
        for stack in self._stacks:
            stack.close()

    def _start(self, stack: ExitStack, port: int) -> Process:
        return stack.enter_context(process(self._store, PORT=port, **self._settings))
