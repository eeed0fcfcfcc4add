"""A process that counts requests of a key, for tests of several at once. It imports little, so that they begin soon."""

import time
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from app.access import quotas as quotas_module
from app.access.quotas import SharedQuotas
from app.access.rates import Rate, Verdict, counted
from tests.patience import PATIENCE_S

KEY = "0123456789ab"
_PAUSE_S = 0.0001


def count(folder: Path, rate: str, tries: int, together: Barrier, told: "SimpleQueue[int]") -> None:
    """Tell how many are admitted. The clock stands still, so that the answer is exact."""
    quotas_module.counted = slowly  # type: ignore[attr-defined]  # in this process alone
    quotas_module._PATIENCE_S = 60.0  # a busy machine may stop any of them for a while
    quotas = SharedQuotas(folder, lambda: 1000.0)
    together.wait(PATIENCE_S)
    admitted = 0
    for _ in range(tries):
        admitted += quotas.count(KEY, Rate.parse(rate)).allowed
        time.sleep(_PAUSE_S)
    told.put(admitted)


def slowly(rate: Rate, even_s: float, now_s: float) -> tuple[float, Verdict]:
    """As `counted`, but others have time to come between."""
    time.sleep(_PAUSE_S)
    return counted(rate, even_s, now_s)
