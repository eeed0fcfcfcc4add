"""The playground in a real browser: what a person does there, and that it asks nobody but the service.

Every test ends with the same demands: no error on the page, nothing refused by its policy, no request to anywhere else.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Route, expect, sync_playwright

from models.store import INDEX, Index, Store
from tests.app.keys import Keys
from tests.app.serving import ROOT, Process, process
from tests.builders import publish_tiny
from tests.patience import PATIENCE_S

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
TABLE = (ROOT / "data" / "last-week.csv").read_text()
PATIENCE_MS = 1000 * PATIENCE_S
"""The same, as Playwright takes it."""
EXAMPLE_START = datetime(2013, 11, 24, 3, tzinfo=UTC)
CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; Debian's package is chromium")

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Both versions of the shipped `weather`: one with a clock, intervals and quantiles, and one without."""
    root = tmp_path_factory.mktemp("store")
    shutil.copytree(ROOT / "artifacts" / "weather", root / "weather")
    index = Store(ROOT / "artifacts").index()
    (root / INDEX).write_text(Index(models={"weather": index.models["weather"]}).model_dump_json())
    with process(root, HTTP_PROCESSES=0, MAX_BATCH_ROWS=2, ACCESS_LOG="false") as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests; each has a profile of its own in it."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, service: Process) -> Iterator[Visit]:
    """Opens the playground for a test, and holds what happened there against what may."""
    with ExitStack() as visits:

        def opened(at: str = "", *, url: str = service.url, **options: Any) -> Page:  # noqa: ANN401  see `visiting`
            return visits.enter_context(visiting(browser, f"{url}/{at}", **options))

        yield opened


@contextmanager
def visiting(
    browser: Browser,
    url: str,
    *,
    expected: tuple[str, ...] = (),
    clock: bool = False,
    **options: Any,  # noqa: ANN401  Playwright's, of a context
) -> Iterator[Page]:
    """A page in a context of its own; requests that fail with these words may be told in the console."""
    asked: list[str] = []
    wrong: list[str] = []

    def note_request(request: Request) -> None:
        asked.append(request.url)

    def note_message(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(words in message.text for words in expected):
            wrong.append(message.text)

    context: BrowserContext = browser.new_context(reduced_motion="reduce", **options)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    if clock:
        page.clock.install()
    page.on("request", note_request)
    page.on("console", note_message)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(url)
    yield page
    context.close()
    assert wrong == []
    assert {urlsplit(each).netloc for each in asked if not each.startswith("data:")} == {urlsplit(url).netloc}


def forecast_shown(page: Page, words: str) -> None:
    """Wait until the answer's line says so."""
    expect(page.locator("#answered")).to_contain_text(words)
    expect(page.locator("#readout .when")).to_be_visible()


def table(page: Page) -> list[list[str]]:
    """The numbers of the chart, as they stand in the table under it."""
    if page.locator("#numbers").get_attribute("open") is None:
        page.locator("#numbers > summary").click()
    return [row.split("\t") for row in page.locator("#numbers-table tr").all_inner_texts()]


def attention(service: Process, *, steps: int) -> list[list[float]]:
    """Rows of weights over the example, as the service gives them."""
    example = httpx.get(f"{service.url}/models/weather/versions/2").json()["spec"]["example"]
    body = {"window": example["window"], "start": example["start"]}
    answer = httpx.post(f"{service.url}/forecast", params={"model": "weather", "steps": steps}, json=body).json()
    weights: list[list[float]] = answer["attention"]["weights"]
    return weights


def heaviest(weights: list[float]) -> str:
    """Which row of the example weighs most, in the words of the page."""
    at = EXAMPLE_START + weights.index(max(weights)) * timedelta(hours=1)
    return f"{at.astimezone(ZoneInfo('America/New_York')):%a %-d %b, %H:%M} ({max(weights):.1%})".replace("%)", " %)")


def test_the_example_is_forecast_and_the_choices_change_it(visit: Visit) -> None:
    """It comes by itself; steps, levels and target change chart, table and address, and the address brings all back."""
    page = visit()
    forecast_shown(page, "weather 2 · 24 steps")
    rows = table(page)
    assert rows[0] == ["step", "time", "temp, °F", "95 % from", "to", "80 % from", "to"]
    assert len(rows) == 25
    assert rows[1][:3] == ["1", "Sat 30 Nov, 22:00", "35.93"]
    assert page.locator("#chart canvas").count() == 1

    page.get_by_role("slider", name="Steps, as a slider").fill("12")
    forecast_shown(page, "12 steps")
    page.get_by_role("checkbox", name="95 %").uncheck(force=True)
    page.get_by_role("radio", name="dewp").check(force=True)
    expect(page.locator("#chart-title")).to_have_text("dewp, °F")
    expect(page.locator("#legend")).not_to_contain_text("95 %")
    rows = table(page)
    assert rows[0] == ["step", "time", "dewp, °F", "80 % from", "to"]
    assert len(rows) == 13
    for _, _, value, lower, upper in rows[1:]:
        assert float(lower) < float(value) < float(upper)

    again = visit(f"#{page.url.partition('#')[2]}")
    forecast_shown(again, "12 steps")
    assert table(again) == rows


def test_more_steps_than_are_calibrated_have_no_intervals(visit: Visit) -> None:
    """The page says so, and asks without them."""
    page = visit()
    forecast_shown(page, "24 steps")
    page.get_by_role("spinbutton", name="Steps").fill("48")
    forecast_shown(page, "48 steps")
    expect(page.locator("#levels-words")).to_have_text("Calibrated for 24 steps, so there are none for 48.")
    assert table(page)[0] == ["step", "time", "temp, °F"]


def test_keys_and_the_pointer_choose_the_step_and_its_attention(visit: Visit, service: Process) -> None:
    """Arrows, End and a pointer go through the steps; what is read out says where each looked."""
    page = visit("#steps=30")
    forecast_shown(page, "30 steps")
    chart = page.locator("#chart")
    chart.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert chart.get_attribute("aria-valuenow") == "4"
    first = chart.get_attribute("aria-valuetext") or ""
    looked = [heaviest(row) for row in attention(service, steps=30)]
    assert first.startswith("Step 4 of 30, Sun 1 Dec, 01:00; weather 2 ")
    assert f"Looked most at {looked[0]}, " in first
    assert first.endswith("Steps 1 to 24 share these weights.")

    page.keyboard.press("End")
    last = chart.get_attribute("aria-valuetext") or ""
    assert last.startswith("Step 30 of 30, ")
    assert f"Looked most at {looked[1]}, " in last
    assert last.endswith("Steps 25 to 30 share these weights.")
    assert looked[0] != looked[1]

    plot = page.locator("#chart .u-over").bounding_box()
    assert plot is not None
    page.mouse.move(plot["x"] + plot["width"] * 0.3, plot["y"] + 50)
    expect(page.locator("#readout")).to_contain_text("attention of step 30")
    page.mouse.move(plot["x"] + plot["width"] * 0.9, plot["y"] + 50)
    expect(page.locator("#readout .when")).to_have_text(re.compile(r"^Step 1\d of 30"))
    assert 10 < int(chart.get_attribute("aria-valuenow") or 0) < 20


def test_two_versions_in_one_picture(visit: Visit) -> None:
    """Both forecasts are in legend, table and error by step; what one cannot do the page says."""
    page = visit()
    forecast_shown(page, "24 steps")
    page.get_by_label("Compare with").select_option("weather/1")
    expect(page.locator("#legend")).to_contain_text("weather 1")
    rows = table(page)
    assert rows[0][-1] == "weather 1"
    assert any(row[2] != row[-1] for row in rows[1:])
    expect(page.locator("#errors-words")).to_contain_text("weather 1 4.34")
    expect(page.locator("#coverage-words")).to_contain_text("the 80 % interval held 79.4 %")


def test_a_table_is_forecast_whether_pasted_or_dropped(visit: Visit, service: Process, tmp_path: Path) -> None:
    """Both ways its numbers are those that the service gives for it, and a file that is opened does the same."""
    url = f"{service.url}/forecast?model=weather&steps=24"
    answer = httpx.post(url, content=TABLE, headers={"Content-Type": "text/csv"}).json()
    page = visit()
    forecast_shown(page, "24 steps")
    page.get_by_role("radio", name="My CSV").check(force=True)
    expect(page.locator("#answered")).to_contain_text("No rows yet")
    page.evaluate(
        """text => {
            const data = new DataTransfer();
            data.items.add(new File([text], "week.csv", { type: "text/csv" }));
            dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        TABLE,
    )
    expect(page.locator("#readout .when")).to_have_text("Step 1 of 24, Mon 30 Dec, 19:00")
    dropped = [float(row[2]) for row in table(page)[1:]]
    assert dropped == pytest.approx([step[0] for step in answer["forecast"]], abs=0.006)

    page.get_by_label("Rows, with a header").fill(TABLE.replace("30.02,10.04", "60.02,10.04"))
    expect(page.locator("#numbers-table tr").nth(1)).not_to_contain_text(str(dropped[0]))
    file = tmp_path / "week.csv"
    file.write_text(TABLE)
    page.locator("#csv-file").set_input_files(file)
    expect(page.locator("#numbers-table tr").nth(1)).to_contain_text(str(dropped[0]))


def test_a_refused_table_says_where_it_is_wrong(visit: Visit) -> None:
    """In words beside the input, with the row to go to; nothing that was shown is lost, and mending it is enough."""
    page = visit(expected=("status of 422",))
    forecast_shown(page, "24 steps")
    page.get_by_role("radio", name="My CSV").check(force=True)
    area = page.get_by_label("Rows, with a header")
    area.fill(TABLE.replace("51.8,", "oops,"))
    alert = page.locator("#data-trouble[role=alert]")
    expect(alert).to_contain_text("csv row 2, column 'temp': 'oops' is not a number")
    expect(area).to_have_attribute("aria-invalid", "true")
    assert page.locator("#chart canvas").count() == 1

    alert.get_by_role("button", name="csv row 2").click()
    assert page.evaluate("getSelection().toString()").startswith("2013-12-24T01:00:00Z,oops,")
    page.keyboard.type(TABLE.splitlines()[2])
    expect(alert).to_be_hidden()
    forecast_shown(page, "weather 2 · 24 steps")


FAILURES = [
    (503, {"Retry-After": "7"}, '{"detail": "the queue is full"}', "The queue is full. It may be asked again in 7 s."),
    (
        429,
        {"Retry-After": "60"},
        '{"detail": "over"}',
        "used up its quota for now. Over. It may be asked again in 1 min.",
    ),
    (502, {}, "<h1>Bad gateway</h1>", "The service answered 502 without a word."),
    (200, {}, "<h1>Hello</h1>", "What came back is no JSON."),
    (200, {}, '{"forecast": 7}', "What came back is no forecast."),
    (0, {}, "", "The service cannot be reached."),
]


def test_whatever_goes_wrong_is_said(visit: Visit) -> None:
    """Clearly, over what was there before; and trying again is one click."""
    page = visit(expected=("status of 5", "status of 429", "net::ERR"))
    forecast_shown(page, "24 steps")
    alert = page.locator("#trouble[role=alert]")
    for steps, (status, headers, body, words) in enumerate(FAILURES, start=10):

        def fail(route: Route, *, how: tuple[int, dict[str, str], str] = (status, headers, body)) -> None:
            if how[0]:
                route.fulfill(status=how[0], headers=how[1], body=how[2])
            else:
                route.abort("connectionaborted")

        page.route("**/forecast?*", fail)
        page.get_by_role("spinbutton", name="Steps").fill(str(steps))
        expect(alert).to_contain_text(words)
        assert page.locator("#chart canvas").count() == 1
        page.unroute("**/forecast?*")
        alert.get_by_role("button", name="Try again").click()
        forecast_shown(page, f"{steps} steps")
        expect(alert).to_be_hidden()


def test_the_request_that_is_shown_works_elsewhere(visit: Visit) -> None:
    """Copied and run, in a shell and in Python, it gives what the page shows."""
    page = visit("#steps=5&levels=90")
    forecast_shown(page, "5 steps")
    shown = [float(row[2]) for row in table(page)[1:]]
    python = "print(json.load(response))"
    for language, command in {"curl": ("sh", "-c"), "Python": (sys.executable, "-c")}.items():
        if language == "curl" and shutil.which("curl") is None:
            continue
        page.get_by_role("radio", name=language, exact=True).check(force=True)
        page.get_by_role("button", name="Copy").click()
        expect(page.locator("#copied")).to_have_text("Copied.")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert (python in copied) == (language == "Python")
        # What Python prints is to be read by this test too.
        copied = copied.replace(python, "print(json.dumps(json.load(response)))")
        done = subprocess.run([*command, copied], capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        assert [row[0] for row in answer["forecast"]] == pytest.approx(shown, abs=0.006)
        assert answer["intervals"].keys() == {"90"}


def test_the_report_opens_with_its_pictures(visit: Visit) -> None:
    """Headings, tables and every picture, without a line of Markdown left."""
    page = visit()
    forecast_shown(page, "24 steps")
    page.locator("#report-part > summary").click()
    report = page.locator("#report")
    expect(report.get_by_role("heading", name="weather, version 2")).to_be_visible()
    expect(report.get_by_role("cell", name="seasonal_naive").first).to_be_visible()
    pictures = report.locator("img")
    assert pictures.count() == 7
    for picture in pictures.all():
        expect(picture).to_have_js_property("complete", value=True)
        expect(picture).not_to_have_js_property("naturalWidth", 0)
    assert not re.search(r"\*\*|!\[|\| ---", report.inner_text())


def test_a_guarded_service_is_given_a_key(visit: Visit, tmp_path: Path) -> None:
    """Without one the page asks for it, a wrong one it says so; a right one is kept in the tab and goes as a header,
    into no address and no snippet."""
    publish_tiny(Store(tmp_path / "store"))
    keys = Keys(tmp_path)
    key = keys.add("somebody", "read", "predict")
    with process(tmp_path / "store", HTTP_PROCESSES=0, KEYS_FILE=keys.file) as guarded:
        page = visit(url=guarded.url, expected=("status of 401",))
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        field.fill("fk_wrong")
        field.press("Enter")
        expect(page.locator("#key-words")).to_have_text("The service does not know this key.")
        field.fill(key)
        field.press("Enter")
        forecast_shown(page, "tiny 1 · 3 steps")
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        assert key not in page.url
        assert key not in page.content()
        expect(page.locator("#snippet")).to_contain_text('-H "Authorization: Bearer $FORETELL_KEY"')
        page.reload()
        forecast_shown(page, "tiny 1 · 3 steps")


def test_a_phone_has_all_of_it(visit: Visit) -> None:
    """Nothing is wider than the screen, in light and dark; a touch chooses a step."""
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme="dark")
    forecast_shown(page, "24 steps")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    plot = page.locator("#chart .u-over")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    page.touchscreen.tap(box["x"] + box["width"] - 1, box["y"] + 40)
    expect(page.locator("#readout .when")).to_have_text(re.compile("^Step 24 of 24"))


def test_the_service_is_followed_while_somebody_looks(visit: Visit) -> None:
    """The page says that the service is ready, what waits and how fast it answers, and for a hidden tab asks nobody."""
    page = visit(clock=True)
    forecast_shown(page, "24 steps")
    expect(page.locator("#live-state")).to_have_text("ready")
    expect(page.locator("#live-queue")).to_have_text("0 windows")
    expect(page.locator("#live-rate")).to_have_text("…")
    page.clock.fast_forward(5_000)
    expect(page.locator("#live-rate")).to_have_text(re.compile(r"^[\d.]+/s$"))
    expect(page.locator("#live-latency")).to_have_text(re.compile(r"^(idle|p95 ≤ [\d.]+ m?s)$"))

    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.clock.fast_forward(600_000)
    assert asked == []
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#live-rate")).to_have_text("…")
    assert any(url.endswith("/metrics") for url in asked)
