from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch

from nopos.bench import against, run

CPU = torch.device("cpu")
RECIPES = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Train:
    steps: int = 1
    schedule: str = "cosine"

@dataclass(frozen=True)
class Recipe:
    name: str
    model: object = None
    train: Train = Train()

SPRINT, NOTEBOOK = Recipe("sprint"), Recipe("notebook")
"""
TRAINER = """
import time

def train(model, settings, seeds, device, *, label):
    assert (settings.schedule, device) == ("constant", "cpu")
    time.sleep({seconds} * settings.steps)
"""
AS_0_1_0 = {
    "nopos/__init__.py": "",
    "nopos/config.py": RECIPES,
    "nopos/training/trainer.py": TRAINER.format(seconds=0.004),
}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=nobody", "-c", "user.email=nobody@localhost", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def commit(folder: Path, files: Mapping[str, str]) -> str:
    """A commit of these files and no others; gives its hash."""
    git(folder, "rm", "-r", "-f", "--quiet", "--ignore-unmatch", ".")
    git(folder, "clean", "-d", "-f", "--quiet")
    write(folder, files)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a version")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A tiny repository: its commit has the layout of 0.1.0, its files have today's, and in both a step sleeps 4 ms.

    `torch` is a stub, so that a process starts at once.
    """
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    git(folder, "init", "--quiet")
    commit(folder, AS_0_1_0)
    (folder / "nopos" / "config.py").unlink()
    write(folder, {"nopos/model/recipes.py": RECIPES})
    write(tmp_path, {"stub/torch.py": "def device(name): return name\n", "laid_out/.keep": ""})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "laid_out"))
    monkeypatch.setattr(against, "HERE", folder)
    monkeypatch.setattr(against, "SECONDS_A_TURN", 0.02)
    monkeypatch.chdir(folder)
    return folder


class Clock:
    """In place of processes that train: seconds of a step by version, in each round, and what was asked for."""

    def __init__(self, this: list[float], commit: list[float]) -> None:
        self.seconds_of_a_step = {"this": [this[0], *this], "commit": [commit[0], *commit]}  # the first warms up
        self.turns: list[tuple[str, dict[str, int]]] = []

    def __call__(self, name, folder, steps, device):
        which = name.split()[0]
        assert (folder / "nopos" / "__init__.py").is_file()
        self.turns.append((which, dict(steps)))
        seconds = self.seconds_of_a_step[which].pop(0)
        return {recipe: count * seconds for recipe, count in steps.items()}


def test_both_warm_up_and_then_take_turns_in_an_order_that_alternates(checkout):
    clock = Clock([0.001] * 6, [0.002] * 6)
    result = against.compare("HEAD", checkout, CPU, rounds=6, measure=clock)
    order = [which for which, _ in clock.turns]
    assert order == ["this", "commit"] + 3 * ["this", "commit", "commit", "this"]
    assert {tuple(steps.values()) for _, steps in clock.turns[:2]} == {(4, 4)}
    assert {tuple(steps.values()) for _, steps in clock.turns[2:]} == {(10, 10)}  # 0.02 s of the slower one's 0.002
    for row in result["ratios"]:
        assert row["this"] == pytest.approx([1000] * 6)
        assert row["other"] == pytest.approx([500] * 6)
        assert (row["ratio"], row["low"], row["high"]) == pytest.approx((2.0, 2.0, 2.0))


def test_the_ratio_is_the_median_of_the_rounds_and_its_interval_lies_within_their_range():
    found = against.ratio_of("sprint", 9, [90.0, 100, 110, 100, 120, 80, 100], [100.0] * 7)
    assert found.ratio == 1.0
    assert 0.8 <= found.low < 1.0 < found.high <= 1.2
    outlier = against.ratio_of("sprint", 9, [90.0, 100, 110, 100, 120, 1, 100], [100.0] * 7)
    assert outlier.ratio == 1.0


def test_the_interval_is_drawn_by_a_generator_of_its_own():
    state = torch.random.get_rng_state()
    first, second = (against.ratio_of("sprint", 9, [80.0, 90, 100, 110, 120, 130], [100.0] * 6) for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("speeds", "code", "words"),
    [
        ([1.0, 1.1, 0.9, 1.0, 1.05, 0.95], 0, "95 %"),
        ([0.7, 0.75, 0.8, 0.7, 0.75, 0.8], 1, "slower: all of it lies below 0.85"),
        ([0.7, 0.75, 0.8, 0.8, 1.0, 1.0], 0, "below 0.85, but not surely; give more --rounds"),
    ],
)
def test_the_exit_code_is_1_when_all_of_an_interval_lies_below_the_limit(
    checkout, nopos, monkeypatch, tmp_path, speeds, code, words
):
    clock = Clock([1 / speed for speed in speeds], [1.0] * 6)
    monkeypatch.setattr(against, "compare", partial(against.compare, measure=clock))
    found, out, err = nopos("bench", "--against", "HEAD", "--rounds", 6, "--json", tmp_path / "kept.json")
    assert (found, err) == (code, "")
    assert words in out
    result = json.loads((tmp_path / "kept.json").read_text())
    assert result["against"] == git(checkout, "rev-parse", "HEAD")
    assert [row["recipe"] for row in result["ratios"]] == ["sprint", "notebook"]
    assert [row["is_regression"] for row in result["ratios"]] == [code == 1] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "code"), [(0.004, 0), (0.016, 1)])
def test_versions_of_both_layouts_are_timed_in_processes_and_the_checkout_is_left_alone(
    checkout, nopos, tmp_path, seconds, code
):
    write(checkout, {"nopos/training/trainer.py": TRAINER.format(seconds=seconds)})
    before = git(checkout, "status", "--porcelain"), git(checkout, "worktree", "list"), git(checkout, "log", "--all")
    found, out, err = nopos("bench", "--against", "HEAD", "--rounds", 6)
    assert (found, err) == (code, "")
    assert "sprint" in out
    after = git(checkout, "status", "--porcelain"), git(checkout, "worktree", "list"), git(checkout, "log", "--all")
    assert after == before
    assert [path.name for path in (tmp_path / "laid_out").iterdir()] == [".keep"]


def test_a_commit_is_found_from_a_folder_inside_the_checkout(checkout, nopos, monkeypatch):
    monkeypatch.chdir(checkout / "nopos")
    monkeypatch.setattr(against, "compare", partial(against.compare, measure=Clock([1.0] * 6, [1.0] * 6)))
    assert nopos("bench", "--against", "HEAD", "--rounds", 6)[0] == 0


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"README": "no package"}, "it must be a commit with a package nopos, and this one has none"),
        ({"nopos/notes.txt": "no module"}, "its package cannot train (ImportError: there is no package nopos in it)"),
        ({"nopos/__init__.py": ""}, "ImportError: none of nopos.model.recipes, nopos.config has a recipe SPRINT"),
        (AS_0_1_0 | {"nopos/training/trainer.py": ""}, "its package cannot train (AttributeError: "),
        (AS_0_1_0 | {"nopos/training/trainer.py": "import os\nos._exit(9)"}, "its process died with code 9"),
    ],
)
def test_a_commit_that_cannot_be_timed_is_one_line_and_leaves_nothing(checkout, nopos, tmp_path, files, words):
    bad = commit(checkout, files)
    commit(checkout, AS_0_1_0)
    code, out, err = nopos("bench", "--against", bad)
    assert (code, out) == (2, "")
    assert err.startswith("nopos: ")
    assert bad[:12] in err
    assert words in err
    assert err.count("\n") == 1
    assert [path.name for path in (tmp_path / "laid_out").iterdir()] == [".keep"]


def never(*arguments, **options):
    pytest.fail("it was measured before the mistake was found")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "nowhere"], "against is 'nowhere'; it must be a commit of the checkout in "),
        (["--against=--all"], "against is '--all'; it must be a commit of the checkout in "),
        (["--against", "HEAD", "--rounds", "5"], "rounds is 5; it must be at least 6"),
        (["--against", "HEAD", "--json", "nopos/notes.json"], "exists and is not a comparison"),
        (["--rounds", "9"], "rounds is 9; it goes with --against COMMIT, which is missing"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(checkout, nopos, monkeypatch, arguments, words):
    write(checkout, {"nopos/notes.json": "{}"})
    monkeypatch.setattr(against, "compare", partial(against.compare, measure=never))
    monkeypatch.setattr(run, "measure", never)
    code, out, err = nopos("bench", "--device", "cpu", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_no_git_and_no_checkout_are_one_line(checkout, nopos, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = nopos("bench", "--against", "HEAD")
    assert (code, err) == (
        2,
        f"nopos: {tmp_path}: is in no git checkout; run `nopos bench --against` where the commit is\n",
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nopos("bench", "--against", "HEAD")[::2] == (
        2,
        "nopos: against needs git; install it so that `git` is found\n",
    )
