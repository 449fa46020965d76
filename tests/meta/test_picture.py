"""The picture of the mechanism: what is drawn, that it is drawn alike each time, and that it is committed."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the picture needs the extra `docs`")

from docs.draw_mechanism import PICTURE, WRITERS, Measured, draw, measure
from nopos.mechanism.kernel import NEAR
from nopos.subjects.controls import reference

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
AGAIN = "run python -m docs.draw_mechanism again"


@pytest.fixture(scope="module")
def measured() -> Measured:
    return measure(reference())


def test_the_picture_is_the_same_at_every_run(measured, tmp_path):
    for name in ("first", "second"):
        draw(measured, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def texts(path: Path) -> list[str]:
    """What is written in a picture. matplotlib draws text as paths, each behind a comment that holds it."""
    return re.findall(r"<!-- (.*) -->", path.read_text())


def colours(path: Path) -> list[str]:
    """How each line and area of a picture is drawn: its colour, width and dashes."""
    return re.findall(r'style="(.*?)"', path.read_text())


def coordinates(path: Path) -> list[float]:
    """Where everything of a picture lies, in points, glyphs included."""
    elements = ET.parse(path).iter()
    placed = " ".join(element.get(name, "") for element in elements for name in ("d", "x", "y", "transform"))
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", placed)]


def test_the_committed_picture_shows_what_is_drawn_now(measured, tmp_path):
    path = tmp_path / "now.svg"
    draw(measured, path)
    assert texts(path) == texts(PICTURE), AGAIN
    if f"matplotlib=={version('matplotlib')}" not in CONSTRAINTS.read_text().splitlines():
        pytest.skip("another matplotlib than that of constraints.txt puts things elsewhere")
    assert colours(path) == colours(PICTURE), AGAIN
    # A tenth of a point: another machine's rounding moves things less.
    np.testing.assert_allclose(coordinates(path), coordinates(PICTURE), atol=0.1, err_msg=AGAIN)


@pytest.mark.parametrize("path", [PICTURE, None], ids=["committed", "drawn now"])
def test_the_picture_has_no_date_and_needs_no_font(path, measured, tmp_path):
    if path is None:
        path = tmp_path / "now.svg"
        draw(measured, path)
    text = path.read_text()
    assert "<dc:date>" not in text
    assert "<text" not in text


def test_the_panels_show_what_the_claims_say_of_the_reference_model(measured):
    np.testing.assert_allclose(measured.bos_weight, measured.bos_by_law, rtol=0.03)
    assert measured.shares.sum() > 0.97
    assert measured.scores_by_weights.shape == (NEAR + 1,)
    assert (np.diff(measured.scores, axis=1) < 0).all()
    assert (measured.scores[:, 0] == 0).all()
    by_writer = dict(zip(WRITERS, zip(measured.current, measured.previous, strict=True), strict=True))
    assert by_writer["MLP 0"][0] < 0 < by_writer["attention 1"][0]
    assert by_writer["MLP 1"][1] == max(measured.previous)
