"""What came out of a population: a pure function of its ledgers, the same to the last byte whatever came first.

Counts have exact (Clopper-Pearson) intervals of 95 %. They speak of the models that were checked; those that failed are
counted beside them, with their reasons, and are in no count, median or correlation.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nopos.methods.statistics import interval, rank_correlation
from nopos.populations.settings import Setting, Value

SCHEMA = 1
ALIKE = 0.98
"""Two measurements whose rank correlation over models is beyond this, either way, say the same."""
FEWEST = 10
"""Models from which measurements can be found alike: of five, one pair in sixty is in one order by chance."""
FEWEST_ALONG = 3
"""Models from which a change along an axis is given, with their number."""
VERDICTS = ("holds", "refuted", "not measurable", "error")
OUT_OF_SCOPE = "out of scope"
"""The verdict on a model that the claim is not about, which is counted apart."""

Key = tuple[str, str]
"""A measurement: the claim's id and the measurement's name."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """What is known of one model at the end."""

    name: str
    setting: str
    seed: int
    trained: bool
    failure: str | None = None
    """Where it failed and why, if it failed."""
    claims: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By id: statement, verdict and measurements, of a model that was checked."""

    @property
    def checked(self) -> bool:
        """Whether its claims have verdicts."""
        return bool(self.claims)

    @property
    def values(self) -> dict[Key, float]:
        """What was measured on it."""
        return {
            (claim_id, one["name"]): float(one["value"])
            for claim_id, claim in self.claims.items()
            for one in claim["measurements"]
        }


def claims_in(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a summary needs of a ledger's record of a subject, by claim."""
    named = ("name", "value", "unit", "operator", "limit")
    return {
        claim["id"]: {
            "statement": claim["statement"],
            "verdict": claim["verdict"],
            "measurements": [{name: one[name] for name in named} for one in claim["measurements"]],
        }
        for claim in record["claims"]
    }


def summary(settings: Sequence[Setting], members: Sequence[Member]) -> dict[str, Any]:
    """The summary of a population, as JSON values.

    Args:
        settings: in the order in which they are listed.
        members: every model that was asked for, in any order.
    """
    rank = {setting.name: row for row, setting in enumerate(settings)}
    members = sorted(members, key=lambda member: (rank[member.setting], member.seed))
    checked = [member for member in members if member.checked]
    measured = {member.name: member.values for member in checked}
    by_setting = {name: [one for one in members if one.setting == name] for name in rank}
    known = _known(checked)
    return {
        "schema": SCHEMA,
        **_counts(members),
        "settings": [
            {"name": one.name, "recipe": one.recipe.name, "grid": dict(one.grid), **_counts(by_setting[one.name])}
            for one in settings
        ],
        "failures": [
            {"model": one.name, "setting": one.setting, "seed": one.seed, "reason": one.failure}
            for one in members
            if one.failure is not None
        ],
        "claims": [
            {"id": claim_id, "statement": claim["statement"], "settings": list(_verdicts(claim_id, by_setting))}
            for claim_id, claim in known.items()
        ],
        "measurements": [
            {
                "claim": claim_id,
                **_without_value(one),
                "settings": list(_spreads((claim_id, one["name"]), by_setting, measured)),
            }
            for claim_id, claim in known.items()
            for one in claim["measurements"]
        ],
        "along": list(_along(settings, by_setting, measured)),
        "alike": list(_alike([measured[one.name] for one in checked])),
    }


def _counts(members: Sequence[Member]) -> dict[str, int]:
    return {
        "expected": len(members),
        "trained": sum(one.trained for one in members),
        "done": sum(one.checked for one in members),
        "failed": sum(one.failure is not None for one in members),
    }


def _known(checked: Sequence[Member]) -> dict[str, dict[str, Any]]:
    """Every claim with all measurements that it made on any model; an exception may have kept some from one."""
    known: dict[str, dict[str, Any]] = {}
    for member in checked:
        for claim_id, claim in member.claims.items():
            entry = known.setdefault(claim_id, {"statement": claim["statement"], "measurements": []})
            names = {one["name"] for one in entry["measurements"]}
            entry["measurements"] += [one for one in claim["measurements"] if one["name"] not in names]
    return known


def _without_value(measurement: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in measurement.items() if name != "value"}


def _verdicts(claim_id: str, by_setting: Mapping[str, Sequence[Member]]) -> Iterator[dict[str, Any]]:
    """Of how many models of each setting the claim holds."""
    for setting, members in by_setting.items():
        found = [member.claims[claim_id]["verdict"] for member in members if claim_id in member.claims]
        if found:
            k, outside = found.count("holds"), found.count(OUT_OF_SCOPE)
            n = len(found) - outside
            others = {verdict: found.count(verdict) for verdict in VERDICTS[1:]}
            yield {
                "setting": setting,
                "holds": k,
                "n": n,
                "interval": list(interval(k, n)),
                **others,
                OUT_OF_SCOPE: outside,
            }


def _spreads(
    key: Key, by_setting: Mapping[str, Sequence[Member]], measured: Mapping[str, Mapping[Key, float]]
) -> Iterator[dict[str, Any]]:
    """Median and spread of a measurement in each setting."""
    for setting, members in by_setting.items():
        values = sorted(measured[one.name][key] for one in members if one.checked and key in measured[one.name])
        if values:
            low, high = (float(quartile) for quartile in np.percentile(values, [25, 75]))
            yield {
                "setting": setting, "n": len(values), "median": statistics.median(values), "quartiles": [low, high],
                "least": values[0], "most": values[-1],
            }  # fmt: skip


def _along(
    settings: Sequence[Setting],
    by_setting: Mapping[str, Sequence[Member]],
    measured: Mapping[str, Mapping[Key, float]],
) -> Iterator[dict[str, Any]]:
    """How each measurement changes along each axis of the grid whose values are numbers, over a recipe's models."""
    for recipe in dict.fromkeys(setting.recipe.name for setting in settings):
        of_recipe = [setting for setting in settings if setting.recipe.name == recipe]
        for axis, _ in of_recipe[0].grid:
            values = [(dict(setting.grid)[axis], setting) for setting in of_recipe]
            if len({value for value, _ in values}) > 1 and all(isinstance(value, int | float) for value, _ in values):
                yield from _along_axis(recipe, axis, values, by_setting, measured)


def _along_axis(
    recipe: str,
    axis: str,
    values: Sequence[tuple[Value, Setting]],
    by_setting: Mapping[str, Sequence[Member]],
    measured: Mapping[str, Mapping[Key, float]],
) -> Iterator[dict[str, Any]]:
    points = [
        (float(value), measured[one.name])
        for value, setting in values
        for one in by_setting[setting.name]
        if one.checked
    ]
    for key in dict.fromkeys(key for _, found in points for key in found):
        pairs = [(value, found[key]) for value, found in points if key in found]
        sides = list(zip(*pairs, strict=True))
        if len(pairs) >= FEWEST_ALONG and all(len(set(side)) > 1 for side in sides):
            yield {
                "recipe": recipe, "axis": axis, "claim": key[0], "name": key[1], "n": len(pairs),
                "rank_correlation": rank_correlation(*sides),
            }  # fmt: skip


def _alike(measured: Sequence[Mapping[Key, float]]) -> Iterator[dict[str, Any]]:
    """Pairs of measurements that order the models alike, or the other way round; of those that every model has."""
    if len(measured) < FEWEST:
        return
    keys = [key for key in measured[0] if all(key in found for found in measured)]
    for pair in itertools.combinations(keys, 2):
        rho = rank_correlation(*([found[key] for found in measured] for key in pair))
        if abs(rho) > ALIKE:
            named = [{"claim": claim, "name": name} for claim, name in pair]
            yield {"pair": named, "n": len(measured), "rank_correlation": rho}
