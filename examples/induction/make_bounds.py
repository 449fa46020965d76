"""Measure the claims on models from many seeds: `python make_bounds.py` trains them, and writes bounds.md.

The seeds are subjects beside the model under test, named by the same hook. The claims are run by pytest, and what they
measured is read from the ledger.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from analyses import answers_lost_without_head, attention_back
from model import AttentionOnly, Sizes
from nopos import ModelSubject, SubjectLoader
from subjects import as_subject, induction
from training import Recipe, train

HERE = Path(__file__).parent
KEPT = HERE / "trained"
"""Models of the seeds, which are not committed."""
FITTING, JUDGING = range(1, 11), range(11, 21)
"""Bounds are set by the first seeds, and judged once by the others. The committed model is neither."""
ROOM = 0.5
"""Of the range over the fitting seeds: a bound lies at least this far beyond the worst of them."""


class Seeds:
    """A plugin that names the committed model and one for each seed."""

    @pytest.hookimpl(tryfirst=True)  # pytest asks one provider alone, and this one before conftest.py
    def pytest_nopos_subjects(self, config: pytest.Config) -> list[SubjectLoader]:
        """The subjects."""
        seeds = [SubjectLoader(_name(seed), partial(trained, seed)) for seed in (*FITTING, *JUDGING)]
        return [SubjectLoader("induction", induction), *seeds]


@dataclass(frozen=True)
class Row:
    """One comparison of a claim, and what was measured."""

    claim: str
    name: str
    operator: str
    limit: float
    values: dict[str, float]
    """By subject."""
    on_controls: dict[str, list[float]]
    """By control; of one that is made for each subject, all."""

    @property
    def spread(self) -> float:
        """From the smallest to the largest value over the fitting seeds."""
        values = self.of(FITTING)
        return max(values) - min(values)

    @property
    def distance(self) -> float:
        """Of the worst fitting seed from the bound; negative where the comparison is false."""
        return min(self._margin(value) for value in self.of(FITTING))

    @property
    def held(self) -> int:
        """On how many judging seeds the comparison is true."""
        return sum(self._margin(value) > 0 for value in self.of(JUDGING))

    def of(self, seeds: range) -> list[float]:
        """The values on these seeds."""
        return [self.values[_name(seed)] for seed in seeds]

    def _margin(self, value: float) -> float:
        return self.limit - value if self.operator == "<" else value - self.limit


def trained(seed: int) -> ModelSubject:
    """The model of a seed, trained unless it is kept from before."""
    kept = KEPT / f"{seed}.safetensors"
    if not kept.exists():
        KEPT.mkdir(exist_ok=True)
        save_file(train(Recipe(seed), partial(print, _name(seed), flush=True)).state_dict(), kept)
    model = AttentionOnly(Sizes(), seed)
    model.load_state_dict(load_file(kept))
    return as_subject(_name(seed), model, description=f"trained with seed {seed}")


def rows(ledger: dict[str, Any]) -> list[Row]:
    """The comparisons of all claims."""
    under_test, controls = (
        [one for one in ledger["subjects"] if one["role"] == role] for role in ("subject", "control")
    )
    found = []
    for claim in under_test[0]["claims"]:
        for item in claim["measurements"]:
            values = {one["name"]: value for one in under_test for value in _values(one, claim["id"], item["name"])}
            on_controls: dict[str, list[float]] = {}
            for one in controls:
                on_controls.setdefault(one["name"], []).extend(_values(one, claim["id"], item["name"]))
            found.append(Row(claim["statement"], item["name"], item["operator"], item["limit"], values, on_controls))
    return found


def line(row: Row) -> str:
    """The row of the table."""
    fitting = row.of(FITTING)
    room = f"{row.distance / row.spread:.1f}" if row.spread > 0 else "exact"
    controls = ", ".join(f"{name} {_range(values)}" for name, values in row.on_controls.items() if values)
    return (
        f"| {row.name} | {row.operator} {row.limit:g} | {row.values['induction']:.4f} | {mean(fitting):.4f} "
        f"| {_range(fitting)} | {room} | {row.held} of {len(JUDGING)} | {controls} |"
    )


def one_head_alone(seed: int) -> float:
    """The answers lost without the one head that looks one back most, of layer 0."""
    model = trained(seed)
    attention = model.run(attention_back, layer=0, distance=1)
    return model.run(answers_lost_without_head, layer=0, head=attention.index(max(attention)))


def table(of_claims: list[Row]) -> str:
    """What bounds.md says."""
    lost = [one_head_alone(seed) for seed in FITTING]
    lines = [
        "# What the claims measure on models of many seeds",
        "",
        f"All values are shares. Mean and range are over {len(FITTING)} seeds, which set the bounds. The room is the",
        f"distance of the worst of them to the bound, in units of the range: at least {ROOM}. When the bounds stood,",
        f"they were judged once, on {len(JUDGING)} further seeds.",
        "",
        "| measurement | bound | committed | mean | range | room | holds on further seeds | on controls |",
        "| --- | --- | ---: | ---: | --- | ---: | --- | --- |",
    ]
    claim = ""
    for row in of_claims:
        if row.claim != claim:
            claim = row.claim
            lines.append(f"| **{claim}** | | | | | | | |")
        lines.append(line(row))
    lines += [
        "",
        "Not claimed, since seeds differ in it: when the one head of layer 0 that looks one back most writes the mean",
        f"of what it writes instead, {mean(lost):.2f} of the answers are lost on average, {_range(lost)} over the",
        f"{len(FITTING)} seeds. Other heads look back too.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, measure, and write the table."""
    torch.set_num_threads(1)  # the number of threads changes the last bits of the weights
    with TemporaryDirectory() as folder:
        written = Path(folder) / "ledger.json"
        pytest.main([str(HERE / "test_induction.py"), "-q", f"--nopos-json={written}"], plugins=[Seeds()])
        of_claims = rows(json.loads(written.read_text()))
    (HERE / "bounds.md").write_text(table(of_claims))
    for row in of_claims:
        assert row.distance >= ROOM * row.spread, f"{row.name}: the bound lies too near to the worst seed"


def _name(seed: int) -> str:
    return f"seed {seed}"


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.4f}", f"{max(values):.4f}"
    return low if low == high else f"{low} to {high}"


def _values(one: dict[str, Any], claim: str, name: str) -> list[float]:
    measured = [each for each in one["claims"] if each["id"] == claim and each["verdict"] != "not measurable"]
    return [item["value"] for each in measured for item in each["measurements"] if item["name"] == name]


if __name__ == "__main__":
    main()
