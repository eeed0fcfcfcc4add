"""Stores that are no folder, for tests: in memory, and in a real S3 server on a port of this machine.

with s3_server() as server:          # sets what drivers read from the environment
    Store(server.fresh())            # s3://models/..., empty
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from unittest.mock import patch

import pytest

BUCKET = "models"
_FRESH = count()


class S3Server:
    """moto's, in a thread. What is in its buckets outlives a stop."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._make = lambda: ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server = self._make()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port each time."""
        self._server = self._make()
        self._server.start()

    def stop(self) -> None:
        """Be gone: connections are refused."""
        self._server.stop()

    @staticmethod
    def fresh() -> str:
        """The address of a store that is empty."""
        return f"s3://{BUCKET}/store-{next(_FRESH)}"


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server with a bucket, and in the environment what leads there; skips the test where moto or s3fs is not there.

    A driver then tries once, where it would try for ten seconds.
    """
    if find_spec("moto") is None or find_spec("s3fs") is None:
        pytest.skip("takes moto[server] and s3fs, which the extra `dev` has")
    import boto3
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = S3Server()
    there = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "s3cret-of-somebody",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    with patch.dict(os.environ, there):
        S3FileSystem.clear_instance_cache()
        server.start()
        try:
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield server
        finally:
            server.stop()


def memory() -> str:
    """The address of an empty store in this process."""
    return f"memory://store-{next(_FRESH)}/models"
