"""The pages in a real browser."""

from pathlib import Path

import numpy as np
import pytest
from browser import browse, needs_browser
from served_sweep import Served

pytestmark = [needs_browser, pytest.mark.slow(1)]
BLUE, VERMILION = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def screen(served: Served, path: str, folder: Path) -> np.ndarray:
    """Pixels as int[height, width, 3]."""
    from PIL import Image

    picture = folder / "screen.png"
    browse(folder, f"--screenshot={picture}", served.url + path)
    return np.asarray(Image.open(picture).convert("RGB")).astype(int)


def count(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels - colour).max(axis=2) < 8).sum())


def test_the_heat_map_colours_good_values_blue_and_failures_vermilion(
    served: Served, tmp_path: Path
) -> None:
    pixels = screen(served, "/sweep/small", tmp_path)
    assert pixels.shape == (900, 1200, 3)
    # the best tile is filled, failed ones are framed
    assert count(pixels, BLUE) > 2000
    assert count(pixels, VERMILION) > 200
    assert (pixels[:, -8:] > 250).all(), "nothing is cut at the right edge"


def test_the_page_of_a_job_draws_its_curves(served: Served, tmp_path: Path) -> None:
    page = f"/job/{served.ids['train L6 infonce bm25 s2']}"
    pixels = screen(served, page, tmp_path)
    assert count(pixels[150:600], BLUE) > 500
    dom = browse(tmp_path, "--dump-dom", served.url + page)
    assert dom.count("<polyline") == 4
    assert "<script>" not in dom
