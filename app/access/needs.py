"""What each endpoint takes of who asks. What is not listed here takes a key for administration."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from starlette.routing import compile_path
from starlette.types import Scope as Request

from app.access.keyring import Scope
from app.handlers import dialect_of

Need = Scope | Literal["open"]

NEEDS: Mapping[tuple[str, str], Need] = {
    ("POST", "/predict"): "predict",
    ("POST", "/forecast"): "predict",
    ("POST", "/anomalies"): "predict",
    ("POST", "/backtest"): "predict",
    ("POST", "/batch"): "predict",
    ("POST", "/models/{name}/versions/{version}/actuals"): "predict",
    ("GET", "/models"): "read",
    ("GET", "/models/{name}"): "read",
    ("GET", "/models/{name}/versions/{version}"): "read",
    ("GET", "/models/{name}/versions/{version}/report"): "read",
    ("GET", "/models/{name}/versions/{version}/report/{file}"): "read",
    ("GET", "/models/{name}/aliases/{alias}"): "read",
    ("GET", "/metrics"): "read",
    ("POST", "/v2/models/{name}/infer"): "predict",
    ("POST", "/v2/models/{name}/versions/{version}/infer"): "predict",
    ("POST", "/v1/timeseries/forecast"): "predict",
    ("GET", "/v1/timeseries/models"): "read",
    ("GET", "/v2"): "read",
    ("GET", "/v2/"): "read",
    ("GET", "/v2/models/stats"): "read",
    ("GET", "/v2/models/{name}"): "read",
    ("GET", "/v2/models/{name}/ready"): "read",
    ("GET", "/v2/models/{name}/config"): "read",
    ("GET", "/v2/models/{name}/stats"): "read",
    ("GET", "/v2/models/{name}/versions/{version}"): "read",
    ("GET", "/v2/models/{name}/versions/{version}/ready"): "read",
    ("GET", "/v2/models/{name}/versions/{version}/config"): "read",
    ("GET", "/v2/models/{name}/versions/{version}/stats"): "read",
    ("POST", "/v2/repository/index"): "read",
    ("POST", "/v2/repository/models/{name}/load"): "admin",
    ("POST", "/v2/repository/models/{name}/unload"): "admin",
    ("POST", "/models/{name}/versions/{version}/load"): "admin",
    ("POST", "/models/{name}/versions/{version}/unload"): "admin",
    ("PUT", "/models/{name}/aliases/{alias}"): "admin",
    ("DELETE", "/models/{name}/aliases/{alias}"): "admin",
    ("POST", "/models/{name}/aliases/{alias}/rollback"): "admin",
    ("GET", "/audit"): "admin",
    # An orchestrator has no key, and what these say is no secret.
    ("GET", "/health/live"): "open",
    ("GET", "/health/ready"): "open",
    ("GET", "/v2/health/live"): "open",
    ("GET", "/v2/health/ready"): "open",
    # A page cannot send a key before it is there.
    ("GET", "/"): "open",
    ("GET", "/playground/{file}"): "open",
    ("GET", "/docs"): "open",
    ("GET", "/docs/oauth2-redirect"): "open",
    ("GET", "/redoc"): "open",
    ("GET", "/openapi.json"): "open",
    ("HEAD", "/openapi.json"): "open",
    ("GET", "/static-offline-docs/{path:path}"): "open",
    ("HEAD", "/static-offline-docs/{path:path}"): "open",
}

_EXACT = {place: need for place, need in NEEDS.items() if "{" not in place[1]}
# The same expressions by which requests are routed.
_PATTERNS = [(method, compile_path(path)[0], need) for (method, path), need in NEEDS.items() if "{" in path]


def need_of(request: Request, served: Callable[[Request], bool]) -> Need:
    """What a request takes; nothing where nothing is `served`, so that it is told so (404, 405)."""
    method, path = request["method"], request["path"]
    need = _EXACT.get((method, path))
    if need is not None:
        return need
    for listed, pattern, needed in _PATTERNS:
        if listed == method and pattern.match(path):
            return needed
    return "admin" if served(request) else "open"


def document(document: dict[str, Any], *, guarded: bool) -> None:
    """Add to an OpenAPI document how a key is given, which operations take one, and their refusals."""
    document["components"].setdefault("securitySchemes", {})["key"] = {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of the service: `Authorization: Bearer fk_...`.",
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            need = NEEDS.get((method.upper(), path), "admin")
            if need == "admin" or (guarded and need != "open"):
                operation["security"] = [{"key": []}]
                for status, description in _REFUSALS.items():
                    refusal = {"description": description, "content": dialect_of(path).content}
                    operation["responses"].setdefault(status, refusal)


_REFUSALS = {
    "401": "A key is needed, and there is none or an unknown one",
    "403": "The key is not for this",
    "429": "The key has used up its quota for now; see `Retry-After`",
}
