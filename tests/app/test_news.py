"""News of the store through a real Redis: told, heard, and no worse than silence where Redis is gone."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.administration import news_redis
from app.administration.news_redis import RedisNews
from tests.app.serving import RedisServer, redis_server, until
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that runs."""
    with redis_server(tmp_path) as server:
        yield server


class Listener:
    """Somebody who follows the news."""

    def __init__(self) -> None:
        self._heard = asyncio.Event()

    def changed(self) -> None:
        self._heard.set()

    async def hears(self) -> None:
        """Wait until it is told once more."""
        async with asyncio.timeout(PATIENCE_S):
            await self._heard.wait()
        self._heard.clear()


@asynccontextmanager
async def listening(url: str, timeout_s: float = 10.0) -> AsyncIterator[tuple[RedisNews, Listener]]:
    """A replica that follows."""
    news, listener = RedisNews(url, timeout_s=timeout_s), Listener()
    task = asyncio.create_task(news.follow(listener.changed))
    try:
        yield news, listener
        assert not task.done()
    finally:
        task.cancel()
        await news.close()


async def test_every_replica_hears(server: RedisServer) -> None:
    """Also the one that tells; each looks at the store once when it begins to listen."""
    async with listening(server.url) as (first, here), listening(server.url) as (second, there):
        for listener in (here, there):
            await listener.hears()
        for news in (first, second):
            news.tell()
            for listener in (here, there):
                await listener.hears()


async def test_silence_is_no_fault(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Redis may be asked to answer at once, and the news still be long in coming."""
    async with listening(server.url, timeout_s=0.2) as (news, listener):
        await listener.hears()
        await asyncio.sleep(0.6)  # three times as long as an answer may take
        news.tell()
        await listener.hears()
    assert caplog.messages == []


async def test_redis_goes_and_comes(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is told meanwhile is lost with a line in the log; whoever listens looks at the store when it is back."""
    monkeypatch.setattr(news_redis, "_PAUSE_S", 0.01)
    async with listening(server.url) as (news, listener):
        await listener.hears()
        server.kill()
        news.tell()
        await asyncio.gather(*news._telling)
        server.start()
        await listener.hears()
        news.tell()
        await listener.hears()
    told = [record.getMessage().partition(" (")[0] for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(told) == ["Redis takes no news of the store", "Redis tells no news of the store"]


async def test_redis_that_was_never_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is raised and nothing hangs; the log has it once."""
    async with listening(f"unix://{tmp_path}/absent.sock") as (news, _):
        news.tell()
        await asyncio.gather(*news._telling)

        async def is_told_of_both() -> bool:
            return len(caplog.messages) == 2

        await until(is_told_of_both)
