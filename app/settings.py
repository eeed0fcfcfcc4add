"""All settings: environment variables with the prefix FORETELL_. The one place that reads the environment."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.signature import SignatureError, Trust
from models.spec import is_model_name
from models.store import StoreError, parse

PREFIX = "FORETELL_"
_SHORTEST_KEY = 16
_OF_THE_CLIENT = frozenset((f"{PREFIX}URL", f"{PREFIX}KEY", f"{PREFIX}KEY_FILE"))
_COLLECTOR = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?(?:/[A-Za-z0-9._~%/-]*)?")
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")


class SettingsError(Exception):
    """A setting that is unknown or out of bounds, by name."""


class Settings(BaseSettings):
    """Read once at the start and handed down; each field is FORETELL_ and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port to listen on; 0 takes a free one")
    http_processes: Annotated[int, Field(ge=0, le=64)] | None = Field(
        None,
        description="HTTP processes beside an engine process for each device; 0 is everything in one process; "
        "where not set, what suits the cores",
    )
    artifacts: Path | str = Field(
        Path("artifacts"),
        description="folder of the published models, or the address of an object store, such as s3://bucket/models",
        repr=False,
    )
    mirror: Path | None = Field(
        None,
        description="folder for the local copy where artifacts is an address; where not set, foretell in the user's "
        "folder of caches",
    )
    versions: str = Field(
        "latest:2",
        description="what to load: latest:N of every model, all, or a list of name:version with commas between",
    )
    poll_s: PositiveFloat = Field(2.0, description="how often the store is looked at for changes")
    load_s: PositiveFloat = Field(300.0, description="longest for a version to load; one that takes longer stays out")
    trusted_key: str | None = Field(
        None,
        description="Ed25519 public key (base64); where set, only versions that it vouches for are opened",
    )
    failures: PositiveInt = Field(
        5, description="windows in a row that a version may fail on before it is taken out and its aliases fall back"
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field(
        "auto", description="auto (every GPU, else the CPU), cpu, cuda (every GPU) or cuda:n"
    )
    torch_threads: PositiveInt = Field(1, description="threads within an operation on the CPU; small networks want 1")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="what windows are read in on a CPU; bfloat16 is faster where the CPU has it, and is used for a "
        "model whose example stays within a hundredth of a standard deviation",
    )
    max_batch_rows: Annotated[int, Field(ge=1, le=65536)] = Field(64, description="most windows in one pass")
    bulk_batch_rows: PositiveInt | None = Field(
        None,
        description="most windows in a pass that has some of bulk work (a backtest) in it, since who asks meanwhile "
        "waits for its end; where not set, 8 on a CPU and as many as in any other on a GPU",
    )
    max_queue_rows: PositiveInt = Field(
        1024,
        description="most windows accepted and not yet answered, for each device; as many again of bulk work",
    )
    max_wait_ms: PositiveInt = Field(
        5000, description="a request that is expected to wait longer than this for its turn is refused"
    )
    max_steps: PositiveInt = Field(1000, description="ceiling of steps")
    max_row_steps: PositiveInt = Field(131_072, description="ceiling of windows times steps in one request")
    max_connections: PositiveInt = Field(
        2048, description="most connections, for each HTTP process; fewer where the limit of open files says so"
    )
    head_s: PositiveFloat = Field(10.0, description="longest for a request's head to arrive, once it has begun")
    body_s: PositiveFloat = Field(
        10.0, description="longest wait for more of a body, or for a client to take its answer; each MiB adds 4 s"
    )
    # A body is parsed on the event loop: at this size the worst one can be takes it a good part of a second.
    max_body_bytes: PositiveInt = Field(2 * 2**20, description="largest request body")
    max_series_bytes: PositiveInt = Field(64 * 2**20, description="largest body of a backtest or a batch")
    backtests: PositiveInt = Field(2, description="most backtests and batches at a time, for each HTTP process")
    backtest_rows: PositiveInt = Field(
        128, description="most windows of a backtest or a batch on their way at a time, bounded by max_queue_rows"
    )
    max_answer_numbers: PositiveInt = Field(2_000_000, description="most numbers in an answer, attention included")
    deadline_ms: PositiveInt = Field(30_000, description="a request's deadline where it names none; also the longest")
    redis_url: str | None = Field(
        None, description="response cache for all replicas; in-process where not set", repr=False
    )
    redis_timeout_ms: PositiveInt = Field(50, description="longest wait for Redis before going on without it")
    cache_bytes: Annotated[int, Field(ge=0)] = Field(64 * 2**20, description="in-process response cache; 0 is off")
    cache_ttl_s: PositiveFloat = Field(300.0, description="how long a response is kept")
    keys_file: Path | None = Field(None, description="file of API keys; without it nobody needs one to predict or read")
    admin_key: SecretStr | None = Field(
        None, description="API key for administration, which is off where neither this nor a key in keys_file is for it"
    )
    tls_cert_file: Path | None = Field(None, description="certificate chain (PEM); with tls_key_file, serve HTTPS")
    tls_key_file: Path | None = Field(None, description="its private key (PEM)")
    cors_origins: str = Field(
        "", description="origins whose pages may call the service from a browser, with commas between; none by default"
    )
    grace_s: NonNegativeFloat = Field(5.0, description="after SIGTERM: serve on, not ready, for so long")
    drain_s: PositiveFloat = Field(30.0, description="then: longest wait for accepted work")
    stall_s: PositiveFloat = Field(30.0, description="a pass that takes longer than this makes the service not live")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe lines logged")
    access_log: bool = Field(default=True, description="a log line for every request")
    traces: str | None = Field(
        None,
        description="address of a collector that takes OTLP over HTTP, such as http://127.0.0.1:4318: spans are sent "
        "there; takes the extra `tracing`",
    )
    traces_share: Annotated[float, Field(ge=0, le=1)] = Field(
        1.0, description="share of the requests that are traced, of those whose caller does not say"
    )

    @field_validator("artifacts", mode="before")
    @classmethod
    def _is_a_place(cls, text: object) -> object:
        try:
            return parse(text) if isinstance(text, str) else text
        except StoreError as error:
            raise ValueError(str(error)) from error

    @field_validator("versions")
    @classmethod
    def _is_policy(cls, text: str) -> str:
        Policy.parse(text)
        return text

    @field_validator("trusted_key")
    @classmethod
    def _is_public_key(cls, text: str | None) -> str | None:
        try:
            if text is not None:
                Trust.parse(text)
        except SignatureError as error:
            raise ValueError(str(error)) from error
        return text

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, text: str | None) -> str | None:
        if text is not None and not re.match(r"(rediss?|unix)://.", text):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        try:
            _ = urlsplit(text or "").port
        except ValueError:
            raise ValueError("its port must be a number up to 65535") from None
        return text

    @field_validator("traces")
    @classmethod
    def _is_collector(cls, text: str | None) -> str | None:
        if text is None:
            return None
        # It is told in logs; what else there may be to say goes into OTEL_EXPORTER_OTLP_HEADERS.
        if not _COLLECTOR.fullmatch(text):
            raise ValueError("must be an address such as http://127.0.0.1:4318, without user, password or query")
        try:
            _ = urlsplit(text).port
        except ValueError:
            raise ValueError("its port must be a number up to 65535") from None
        return text if urlsplit(text).path.strip("/") else f"{text.rstrip('/')}/v1/traces"

    @field_validator("admin_key")
    @classmethod
    def _is_long(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key.get_secret_value()) < _SHORTEST_KEY:
            raise ValueError(f"must have {_SHORTEST_KEY} characters at least")
        return key

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, text: str) -> str:
        for origin in origins_of(text):
            # Not `*`: any page that somebody within the network opens could then ask the service there.
            if not _ORIGIN.fullmatch(origin):
                raise ValueError("must be origins such as https://example.org, without a path, with commas between")
        return text

    @model_validator(mode="after")
    def _has_both_or_none(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            missing = "tls_cert_file" if self.tls_cert_file is None else "tls_key_file"
            raise ValueError(f"{PREFIX}{missing.upper()} is missing: HTTPS takes a certificate and its key")
        return self

    @model_validator(mode="after")
    def _has_room_for_a_mirror(self) -> Self:
        if isinstance(self.artifacts, str):
            mirrors(self)
        return self

    @classmethod
    def read(cls) -> Self:
        """From the environment; SettingsError naming an unknown variable or a value out of bounds."""
        known = {PREFIX + name.upper() for name in cls.model_fields}
        for variable in os.environ:
            if variable.upper().startswith(PREFIX) and variable.upper() not in known:
                near = difflib.get_close_matches(variable.upper(), known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                if variable.upper() in _OF_THE_CLIENT:
                    # Not passed over: who meant to guard the service would have it stand open.
                    hint = f"; it is the client's, so unset it here{hint}"
                raise SettingsError(f"{variable}: unknown setting{hint} (python -m app --help lists them)")
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            problem = first["msg"].removeprefix("Value error, ")
            if not first["loc"]:
                raise SettingsError(problem) from None
            field = str(first["loc"][0])
            given = _shown(field, str(first["input"]))
            # Not `from error`, which tells all that was given.
            raise SettingsError(f"{PREFIX}{field.upper()}={given}: {problem}") from None

    @classmethod
    def describe(cls) -> str:
        """A line for every setting: name, default, meaning."""
        lines = []
        for name, field in cls.model_fields.items():
            default: Any = field.default
            shown = "required" if default is PydanticUndefined else "not set" if default is None else str(default)
            lines.append(f"  {PREFIX + name.upper():26} {field.description} [{shown}]")
        return "\n".join(lines)


def mirrors(settings: Settings) -> Path:
    """Where local copies of stores lie that are far away; ValueError where nobody has said and there is no place."""
    if settings.mirror is not None:
        return settings.mirror
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "foretell"
    except RuntimeError:
        raise ValueError(f"{PREFIX}MIRROR is missing: whoever runs this has no folder of caches") from None


def origins_of(text: str) -> tuple[str, ...]:
    """What a list with commas between names."""
    return tuple(origin.strip() for origin in text.split(",") if origin.strip())


def _shown(field: str, given: str) -> str:
    """What was given, less what is for no log: a key, and what an address may hold of passwords."""
    if field == "admin_key":
        return "..."
    if field in ("artifacts", "redis_url", "traces"):
        return re.sub(r"\?.*", "?...", re.sub(r"^(\w+://)?.*@", r"\1...@", given))
    return given


class Policy:
    """Which versions to load: the newest `latest` of every model, or those in `listed`; all where both are None."""

    def __init__(self, latest: int | None = None, listed: frozenset[tuple[str, int]] | None = None) -> None:
        self.latest = latest
        self.listed = listed

    @classmethod
    def parse(cls, text: str) -> Self:
        """`all`, `latest`, `latest:N` or `name:version,name:version`; ValueError saying so for anything else."""
        if text == "all":
            return cls()
        if match := re.fullmatch(r"latest(?::([1-9]\d{0,8}))?", text):
            return cls(latest=int(match[1] or 1))
        pairs = [part.strip().rpartition(":") for part in text.split(",")]
        if not all(is_model_name(name) and re.fullmatch(r"[1-9]\d{0,8}", version) for name, _, version in pairs):
            raise ValueError("must be all, latest:N, or name:version with commas between")
        return cls(listed=frozenset((name, int(version)) for name, _, version in pairs))

    def chooses(self, name: str, version: int, published: frozenset[int]) -> bool:
        """Whether to load that version of a model with these published versions."""
        if self.listed is not None:
            return (name, version) in self.listed
        return self.latest is None or version in sorted(published)[-self.latest :]


def http_processes(settings: Settings) -> int:
    """As many as are set; else none on one core, and as many as an engine can keep busy on more.

    One on the CPU has its core full with about as many requests as one HTTP process brings it; a GPU's takes several.
    """
    if settings.http_processes is not None:
        return settings.http_processes
    cores = len(os.sched_getaffinity(0))
    # Torch would know for certain, but takes seconds and 200 MB to ask.
    there = settings.device == "auto" and any(Path("/dev").glob("nvidia[0-9]*"))
    gpu = there or settings.device.startswith("cuda")
    return min(4 if gpu else 1, cores - 1)


def child_environment() -> dict[str, str]:
    """What a process of ours is started with: our own settings, and those of libraries that read no others.

    oneDNN keeps what it compiled for so many shapes; by default so few that a handful of models would compile again
    and again. prometheus_client is told by us where to count, and nobody else's folder is to come between.
    """
    environment = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16384", **os.environ}
    environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
    return environment
