"""The page in a real browser: on screen, on paper, clicked and filtered."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from browser import browse, needs_browser
from reports import make_report

from xsweep.orchestrator.report.effects import with_effects
from xsweep.orchestrator.report.render_html import render_html

pytestmark = [needs_browser, pytest.mark.slow(1)]
PROBE = """<script>
const found = {};
found.overflow = document.documentElement.scrollWidth > innerWidth;
document.querySelector("td button").click();
found.open = document.querySelectorAll("[popover]:popover-open").length;
const head = [...document.querySelectorAll("#results thead tr:last-child th")];
head.at(-1).click();
found.sorted = [...document.querySelectorAll("#results > tbody > tr")].map(
  row => Number(row.cells[row.cells.length - 1].dataset.value || -1));
const input = document.querySelector("input");
input.value = "L6 bce";
input.dispatchEvent(new Event("input"));
found.left = [...document.querySelectorAll("#results > tbody > tr")].filter(
  row => row.offsetParent).map(row => row.cells[1].textContent);
found.sticky = (() => {
  const box = document.querySelector(".scroll");
  box.scrollLeft = 500;
  return [box.scrollLeft > 0, Math.round(head[0].getBoundingClientRect().left -
    box.getBoundingClientRect().left)];
})();
document.title = JSON.stringify(found);
</script></body>"""


@pytest.fixture(scope="module")
def wide(make_cell):
    """Two backbones on nine collections: more columns than fit on a screen or page."""
    generator = np.random.default_rng(1)
    cells = []
    for collection in (f"collection-{i}" for i in range(9)):
        cells.append(
            make_cell(
                len(cells),
                system="first_stage",
                collection=collection,
                AP=generator.uniform(0.3, 0.6, 40),
            )
        )
        for backbone in ("L3", "L6"):
            for objective, level in (("bce", 0.1), ("infonce", 0.4), ("adr_mse", 0.35)):
                for seed in (1, 2):
                    cells.append(
                        make_cell(
                            len(cells),
                            backbone=backbone,
                            objective=objective,
                            seed=seed,
                            collection=collection,
                            AP=level + generator.uniform(0, 0.5, 40),
                        )
                    )
    return with_effects(make_report(cells, sweep="wide", measures=["AP"]))


@pytest.fixture
def page(wide, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render_html(wide), encoding="utf-8")
    return path


def test_numbers_open_columns_sort_and_rows_filter(page, tmp_path):
    page.write_text(page.read_text().replace("</body>", PROBE))
    dom = browse(tmp_path, "--dump-dom", page.as_uri())
    found = json.loads(re.search(r"<title>(.*?)</title>", dom)[1])
    assert found["open"] == 1
    assert found["sorted"] == sorted(found["sorted"], reverse=True)
    assert found["left"] == ["bce"]
    # the table scrolls in its own box, not the page, and its labels stay
    assert not found["overflow"]
    assert found["sticky"] == [True, 0]


def test_the_screen_shows_both_verdicts_in_colours_distinct_for_the_colour_blind(page, tmp_path):
    from PIL import Image

    picture = tmp_path / "screen.png"
    browse(tmp_path, f"--screenshot={picture}", page.as_uri())
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert pixels.shape == (900, 1200, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (np.abs(pixels - colour).max(axis=2) < 8).sum() > 20, colour
    # nothing is cut at the right edge of the window: the page keeps its margin
    assert (pixels[:, -8:] > 250).all()


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext on this machine")
def test_paper_has_every_column_with_its_values(page, wide, tmp_path):
    paper = tmp_path / "paper.pdf"
    browse(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={paper}", page.as_uri())
    done = subprocess.run(
        ["pdftotext", "-layout", paper, "-"], capture_output=True, text=True, check=True
    )
    for column in wide.table.columns:
        assert column.place in done.stdout
        for row in wide.table.rows:
            assert wide.shown(row, column).value in done.stdout
    assert "Filter rows" not in done.stdout
    assert "Marginal means" in done.stdout
