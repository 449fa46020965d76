"""Is training slower than it was: this package and that of another commit, timed in turns on one machine.

Times of two machines, or of two hours of a shared one, cannot be compared; ratios within a run can. So the other
commit's package is laid out in a temporary folder, and each turn is a process of its own that imports one of the two
and trains some steps. A process of its own for *each* turn, since two processes of one program differ by some
percent for as long as they live: by where their memory lies. The interval must know of that.

**When it fails.** A ratio below `LIMIT` fails the command only if its whole interval lies below. Whoever keeps a CI
running wants few false alarms: on a shared machine the point estimate of a version against itself can fall below the
limit by chance, the upper end of its interval hardly ever does. The price is that a small loss may pass in a
noisy hour; the table says so where the estimate alone is below the limit, and more rounds then tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import nopos
from nopos.bench.machine import facts
from nopos.bench.other_version import package_of, resolved, seconds_in_a_process
from nopos.errors import ConfigError
from nopos.model.data import generator

HERE = Path(nopos.__file__).parents[1]
"""The folder of this package."""
LIMIT = 0.85
"""A ratio of speeds below it is a regression."""
ROUNDS = 10
FEWEST_ROUNDS = 6
"""Even the whole range of five rounds is no interval of 95 %: the median lies beyond it in 1 of 16 cases."""
SECONDS_A_TURN = 1.0
RECIPES = ("sprint", "notebook")
RESAMPLES = 10_000

Measure = Callable[[str, Path, Mapping[str, int], str], dict[str, float]]
"""Seconds of so many steps of each recipe: of a version's name, the folder of its package, steps, and a device."""


@dataclass(frozen=True)
class Ratio:
    """How many times as fast this version trains as the other, by the steps per second of each round."""

    recipe: str
    steps: int
    """Steps of a turn."""
    this: tuple[float, ...]
    """Steps per second of this version, round by round."""
    other: tuple[float, ...]
    ratio: float
    """The median over the rounds of this over other."""
    low: float
    high: float
    """Ends of the interval of 95 % of that median, by bootstrap over the rounds."""

    @property
    def is_regression(self) -> bool:
        """Whether all of the interval lies below the limit."""
        return self.high < LIMIT


def compare(
    commit: str,
    repository: Path,
    device: torch.device,
    *,
    rounds: int = ROUNDS,
    measure: Measure = seconds_in_a_process,
) -> dict[str, Any]:
    """Time this package against that of a commit.

    Args:
        commit: whatever git takes for one.
        repository: a folder of the checkout that has the commit; nothing in it is changed.
        device: where both train.
        rounds: each times both versions once, in an order that alternates.
        measure: what times one version.

    Returns:
        One object for JSON: `against` (the commit's hash), `limit`, `rounds`, and `ratios`, a `Ratio` each.

    Raises:
        ConfigError: too few rounds, no git checkout, no such commit, or no package in it that can train.
        TrainingError: a process died.
    """
    if rounds < FEWEST_ROUNDS:
        raise ConfigError(
            f"rounds is {rounds}; it must be at least {FEWEST_ROUNDS}, or an interval of 95 % has no room"
        )
    hashed = resolved(commit, repository)
    with package_of(hashed, repository) as there:
        versions = {"this version": HERE, f"commit {hashed[:12]}": there}
        ratios = _ratios(versions, device.type, rounds, measure)
    return {
        "schema": 1,
        "command": "bench --against",
        "environment": facts(device),
        "against": hashed,
        "limit": LIMIT,
        "rounds": rounds,
        "ratios": [asdict(ratio) | {"is_regression": ratio.is_regression} for ratio in ratios],
    }


def _ratios(versions: Mapping[str, Path], device: str, rounds: int, measure: Measure) -> list[Ratio]:
    """The ratios of the first version over the second, by recipe."""
    speeds: dict[tuple[str, str], list[float]] = {(name, recipe): [] for name in versions for recipe in RECIPES}
    with tqdm(total=len(versions) * (rounds + 1), desc="both versions", unit="turn", disable=None, leave=False) as bar:

        def turn(name: str, steps: Mapping[str, int]) -> dict[str, float]:
            taken = measure(name, versions[name], steps, device)
            bar.update()
            return taken

        steps = _steps_of_a_turn([turn(name, dict.fromkeys(RECIPES, 4)) for name in versions])
        for number in range(rounds):
            for name in versions if number % 2 == 0 else reversed(list(versions)):
                for recipe, seconds in turn(name, steps).items():
                    speeds[name, recipe].append(steps[recipe] / seconds)
    this, other = versions
    return [ratio_of(recipe, steps[recipe], speeds[this, recipe], speeds[other, recipe]) for recipe in RECIPES]


def _steps_of_a_turn(warm: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """As many steps as the slower version takes `SECONDS_A_TURN` for, by how long each took for four."""
    return {recipe: max(4, math.ceil(SECONDS_A_TURN / (max(turn[recipe] for turn in warm) / 4))) for recipe in RECIPES}


def ratio_of(recipe: str, steps: int, this: Sequence[float], other: Sequence[float]) -> Ratio:
    """The ratio and its interval, from the steps per second of both versions in each round."""
    ratios = torch.tensor(this, dtype=torch.float64) / torch.tensor(other, dtype=torch.float64)
    drawn = torch.randint(len(ratios), (RESAMPLES, len(ratios)), generator=generator("bootstrap", 0))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = ratios[drawn].quantile(0.5, dim=1).quantile(ends).tolist()
    return Ratio(recipe, steps, tuple(this), tuple(other), ratios.quantile(0.5).item(), low, high)


def table(result: Mapping[str, Any]) -> list[str]:
    """The lines for what `compare` returned."""
    lines = [f"steps per second of this version over those of {result['against'][:12]}, {result['rounds']} rounds"]
    for row in result["ratios"]:
        line = f"{row['recipe']:<10}{row['ratio']:>7.3f}   95 %: {row['low']:.3f} to {row['high']:.3f}"
        if row["is_regression"]:
            line += f"   slower: all of it lies below {result['limit']}"
        elif row["ratio"] < result["limit"]:
            line += f"   below {result['limit']}, but not surely; give more --rounds"
        lines.append(line)
    return lines
