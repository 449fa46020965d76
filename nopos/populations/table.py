"""A summary as a page of Markdown that a person reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nopos.claims.claim import sentence

MOST_ROWS = 40
"""Of a list whose whole is in summary.json."""


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The page, for an object of `nopos.populations.results.summary`."""
    return [
        "# A population",
        "",
        "{expected} models were asked for: {trained} trained, {done} trained and checked, {failed} failed.".format(
            **summary
        ),
        "Counts are of the models that were checked, with exact intervals of 95 %. `summary.json` has all numbers.",
        *_settings(summary),
        *_failures(summary),
        *_claims(summary),
        *_measurements(summary),
        *_along(summary),
        *_alike(summary),
    ]


def _settings(summary: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "",
        "## Settings",
        "",
        "| setting | expected | trained | checked | failed |",
        "|---|---:|---:|---:|---:|",
    )
    for one in summary["settings"]:
        yield f"| {one['name']} | {one['expected']} | {one['trained']} | {one['done']} | {one['failed']} |"


def _failures(summary: Mapping[str, Any]) -> Iterator[str]:
    if summary["failures"]:
        yield from ("", "## Failed", "")
        yield from _first(f"- {one['model']}, {one['reason']}" for one in summary["failures"])


def _claims(summary: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "",
        "## Claims",
        "",
        "| claim | setting | holds | interval | refuted | not measurable | error | out of scope |",
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for claim in summary["claims"]:
        for one in claim["settings"]:
            low, high = one["interval"]
            yield (
                f"| {claim['statement']} | {one['setting']} | {one['holds']} of {one['n']} | {low:.3f} to {high:.3f} "
                f"| {one['refuted']} | {one['not measurable']} | {one['error']} | {one['out of scope']} |"
            )


def _measurements(summary: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Measurements", "", "| claim | measurement | bound | setting | median | quartiles | range | n |")
    yield "|---|---|---|---|---:|---:|---:|---:|"
    for measurement in summary["measurements"]:
        bound = f"{measurement['operator']} {measurement['limit']:g} {measurement['unit']}".rstrip()
        for one in measurement["settings"]:
            low, high = one["quartiles"]
            yield (
                f"| {sentence(measurement['claim'])} | {measurement['name']} | {bound} | {one['setting']} "
                f"| {one['median']:.4g} | {low:.4g} to {high:.4g} | {one['least']:.4g} to {one['most']:.4g} "
                f"| {one['n']} |"
            )


def _along(summary: Mapping[str, Any]) -> Iterator[str]:
    if not summary["along"]:
        return
    yield from ("", "## Along the grid", "", "| recipe | axis | claim | measurement | rank correlation | n |")
    yield "|---|---|---|---|---:|---:|"
    yield from _first(
        f"| {one['recipe']} | {one['axis']} | {sentence(one['claim'])} | {one['name']} "
        f"| {one['rank_correlation']:+.3f} | {one['n']} |"
        for one in _strongest_first(summary["along"])
    )


def _alike(summary: Mapping[str, Any]) -> Iterator[str]:
    if not summary["alike"]:
        return
    yield from ("", "## Measurements that say the same", "", "| measurement | measurement | rank correlation | n |")
    yield "|---|---|---:|---:|"
    yield from _first(
        "| {} | {} | {:+.3f} | {} |".format(
            *(f"{sentence(one['claim'])}: {one['name']}" for one in pair["pair"]), pair["rank_correlation"], pair["n"]
        )
        for pair in _strongest_first(summary["alike"])
    )


def _strongest_first(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(found, key=lambda one: -abs(one["rank_correlation"]))


def _first(rows: Iterator[str]) -> Iterator[str]:
    """So many rows, and how many more there are."""
    for number, row in enumerate(rows):
        if number < MOST_ROWS:
            yield row
    more = number + 1 - MOST_ROWS
    if more > 0:
        yield from ("", f"And {more} more, in `summary.json`.")
