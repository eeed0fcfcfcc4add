"""Logs: one JSON object a line on standard error, with the id of the request that it belongs to, and of its trace."""

import logging
import logging.config
import sys
from contextvars import ContextVar
from types import TracebackType

from pythonjsonlogger.core import RESERVED_ATTRS

from app.spans import current

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class _RequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if (identity := request_id.get()) is not None:
            record.request_id = identity
        if (span := current.get()) is not None:
            record.trace_id, record.span_id = span.trace_id, span.span_id
        return True


def configure(level: str) -> None:
    """Send everything to standard error as JSON: uvicorn's lines, Python's warnings, and what ends the process."""
    logging.captureWarnings(capture=True)
    sys.excepthook = _tell_end
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"request_id": {"()": _RequestId}},
            "formatters": {
                "json": {
                    "()": "pythonjsonlogger.orjson.OrjsonFormatter",
                    "format": "{levelname}{name}{message}",
                    "style": "{",
                    "rename_fields": {"levelname": "level", "name": "logger"},
                    "timestamp": "time",
                    # uvicorn's extra for terminals: the message again, with its colours.
                    "reserved_attrs": [*RESERVED_ATTRS, "color_message"],
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "filters": ["request_id"]}},
            "root": {"level": level.upper(), "handlers": ["stderr"]},
            # Requests are logged by our own middleware, with their id; uvicorn's start and stop lines pass.
            "loggers": {"uvicorn.access": {"handlers": [], "propagate": False}},
        }
    )


def _tell_end(kind: type[BaseException], error: BaseException, _traceback: TracebackType | None) -> None:
    logging.getLogger("app").critical("the process ends: %s", kind.__name__, exc_info=error)
