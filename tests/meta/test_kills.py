"""What is lost of a sweep whose processes are killed: nothing, by the committed table and by a few more kills."""

from __future__ import annotations

import random
import re

import pytest

from fixtures import make_kills
from fixtures.make_kills import Disturbed, Kill


def numbers(text: str) -> dict[str, int]:
    """The numbers of a table's list."""
    return {name: int(number) for name, number in re.findall(r"^- (.*): (\d+)\.$", text, re.MULTILINE)}


def test_of_fifty_kills_and_more_none_lost_anything():
    text = make_kills.KEPT.read_text()
    rows = dict(re.findall(r"^\| (.*) \| (\d+ \| \d+) \|$", text, re.MULTILINE))
    assert tuple(rows) == make_kills.MOMENTS
    kills = [sum(int(row.split(" | ")[column]) for row in rows.values()) for column in (0, 1)]
    assert sum(kills) >= 50
    assert min(int(number) for number in rows[make_kills.MEANWHILE].split(" | ")) >= 5
    assert min(kills) >= 10
    assert f"at {sum(kills)} moments" in text
    starts, *lost = numbers(text).values()
    assert starts > kills[0]
    assert lost == [0, 0, 0]


def test_the_table_counts_what_was_lost():
    every = make_kills.MODELS
    kills = [Kill("worker", 2.0, 3, 1), Kill("driver", 2.0, 4, 4), Kill("driver", 1.0, every, every)]
    kills.append(Kill("driver", 1.0, 0, 0))
    text = make_kills.table([Disturbed(kills, 4, 2, ["a", "b"], ["c"]), Disturbed([], 1, 0, [], [])])
    assert "at 4 moments" in text
    assert f"| {make_kills.BEFORE} | 1 | 0 |" in text
    assert f"| {make_kills.MEANWHILE} | 1 | 1 |" in text
    assert f"| {make_kills.AFTER} | 1 | 0 |" in text
    assert list(numbers(text).values()) == [5, 1, 1, 2]


@pytest.mark.slow
def test_a_few_more_kills_lose_nothing_either(tmp_path):
    expected = make_kills.undisturbed(tmp_path / "undisturbed")
    assert len(expected) == 3 + 2 * make_kills.MODELS
    found = make_kills.disturbed(tmp_path / "disturbed", expected, 2, random.Random("slow"))
    assert len(found.kills) == 2
    assert (found.unlike, found.trained_twice, found.left_behind) == ([], [], 0)
