"""The service on Ray Serve: each replica is all of it, its engine included (docs/decisions/0027).

    serve run deploy.ray.serve:app
    serve deploy deploy/ray/serve.yaml

Settings are the same environment variables, given to the replicas (`env_vars` in serve.yaml). What Ray's proxies do in
place of the service's own server has no settings here.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.access.browsers import ALWAYS
from app.access.keyring import check_keys
from app.lifecycle import Lifecycle, steady
from app.main import create_app
from app.processes.backend import Local, Parts
from app.settings import PREFIX, Settings, SettingsError
from deploy.ray.figures import Gauges

log = logging.getLogger("app")

_OF_RAY = {
    "host": "http_options of Ray Serve",
    "port": "http_options of Ray Serve",
    "tls_cert_file": "ssl_certfile in http_options of Ray Serve",
    "tls_key_file": "ssl_keyfile in http_options of Ray Serve",
    "http_processes": "the number of replicas",
    "max_connections": "nothing: Ray's proxies have no such bound",
    "head_s": "nothing: Ray's proxies have no such bound",
    "body_s": "request_timeout_s in http_options of Ray Serve",
    "grace_s": "graceful_shutdown_timeout_s of the deployment",
}
"""Settings of what is not there, and what stands in their place. Who gives one would rely on it."""

_TELL_S = 10.0
"""How often figures are given to Ray, which shows them as often."""
_POLL_S = 0.05
_IDENTITY = b"x-request-id"
_ALWAYS = [(name.lower().encode(), value.encode()) for name, value in ALWAYS]


class NotServingError(Exception):
    """A replica that should not be asked, and why."""


class Whole:
    """The application, which starts once its models have been tried, for a server that passes no lifespan state on."""

    def __init__(self, app: ASGIApp, settings: Settings, lifecycle: Lifecycle, backend: Local) -> None:
        self._app = app
        self._settings = settings
        self._lifecycle = lifecycle
        self._backend = backend
        self._state: dict[str, Any] = {}
        """What the lifespan yields (app.deps.State)."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._live({**scope, "state": self._state}, receive, send)
            return

        async def as_server(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Ray has given the request its id where the client did not, and adds it to the answer itself.
                kept = [pair for pair in message["headers"] if pair[0].lower() != _IDENTITY]
                message = {**message, "headers": [*_ALWAYS, *kept]}
            await send(message)

        await self._app({**scope, "state": dict(self._state)}, receive, as_server)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        telling: asyncio.Task[None] | None = None

        async def received() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self._lifecycle.draining = True
                if telling is not None:
                    telling.cancel()
            return message

        async def tried(message: Message) -> None:
            nonlocal telling
            if message["type"] == "lifespan.startup.complete":
                try:
                    await self._loaded()
                except NotServingError as error:
                    message = {"type": "lifespan.startup.failed", "message": str(error)}
                else:
                    telling = asyncio.create_task(self._tell(), name="figures")
                    steady()
            await send(message)

        await self._app(scope, received, tried)

    async def _loaded(self) -> None:
        """Once a version is warm. NotServingError where none is: then Ray keeps the replicas that it has."""
        catalogue = self._parts.catalogue
        while not self._parts.is_ready(self._settings.stall_s):
            if catalogue.settled or not self._parts.is_live():
                out = [f"{one.id.name} {one.id.version}: {one.reason}" for one in catalogue.versions() if one.reason]
                why = catalogue.trouble or "; ".join(out) or "no model is published there"
                raise NotServingError(f"no model of {self._settings.artifacts} is ready: {why}")
            await asyncio.sleep(_POLL_S)

    async def _tell(self) -> None:
        gauges = Gauges()
        while True:
            try:
                gauges.tell(await self._backend.metrics.exposition())
            except Exception:  # whatever Ray has against them, forecasts go on
                log.exception("the figures cannot be given to Ray")
            await asyncio.sleep(_TELL_S)

    def check(self) -> None:
        """NotServingError where nothing but a new replica would help."""
        if not self._parts.is_live():
            raise NotServingError("a device is stuck or dead")

    @property
    def _parts(self) -> Parts:
        parts: Parts = self._state["parts"]
        return parts


def build() -> Whole:
    """The application of a replica; SettingsError for a setting that is wrong, or of no use here."""
    settings = Settings.read()
    for name in sorted(settings.model_fields_set & _OF_RAY.keys()):
        raise SettingsError(f"{PREFIX}{name.upper()}: not on Ray Serve; in its place is {_OF_RAY[name]}")
    check_keys(settings)
    logs.configure(settings.log_level)
    lifecycle = Lifecycle()
    backend = Local()
    return Whole(create_app(settings, lifecycle, backend), settings, lifecycle, backend)


AUTOSCALING: Mapping[str, Any] = {
    "min_replicas": 1,
    "max_replicas": 8,
    # A full pass, and as many again that wait for the next: more would only wait.
    "target_ongoing_requests": 64,
    "upscale_delay_s": 10,
    "downscale_delay_s": 300,
}
ACTOR: Mapping[str, Any] = {
    "num_cpus": 1,
    # As app.settings.child_environment says.
    "runtime_env": {"env_vars": {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16384"}},
}


@serve.deployment(
    name="Foretell",
    autoscaling_config=dict(AUTOSCALING),
    ray_actor_options=dict(ACTOR),
    # The service itself refuses what would wait too long, with a status and a Retry-After that say so; what Ray keeps
    # back it cannot see. More than its queue has room for.
    max_ongoing_requests=4096,
    graceful_shutdown_timeout_s=45,
    health_check_period_s=5,
    health_check_timeout_s=30,
)
@serve.ingress(build)
class Replica:
    """One of several."""

    def check_health(self) -> None:
        """Ray asks every few seconds, and replaces a replica that fails three times in a row."""
        self.app.check()  # type: ignore[attr-defined]  # Ray's, from `serve.ingress`


app = Replica.bind()  # type: ignore[attr-defined]  # Ray's decorators say that they return the class
