"""README is short enough for a stranger, its example works, and the documents' tables are those of the code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from nopos.claims.claim import claim_of
from nopos.claims.outcome import Controls
from nopos.claims.records import records
from nopos.claims.table import table
from nopos.claims.verdict import check
from nopos.subjects.controls import CONTROLS, reference
from nopos.subjects.shipped import shipped_claims
from nopos.verify import checked

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CLAIMS = ROOT / "docs" / "claims.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """What README's whole file measures on the reference model: claim, verdict, and the records of both."""
    (text,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    path = tmp_path_factory.mktemp("readme") / "test_my_claims.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("test_my_claims", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (claim,) = (found for value in vars(module).values() if (found := claim_of(value)) is not None)
    subject, controls = reference(), Controls()
    verdict = check(claim, subject, controls)
    return verdict, records(verdict, subject, controls)


def test_readme_is_short_and_has_the_two_commands():
    lines = README.read_text().splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 120] == []
    assert sum(line.startswith("python3 -m venv") for line in lines) == 2


def printed_lines():
    """The lines that README shows of what `nopos verify` prints; an ellipsis stands for others."""
    marked = README.read_text().partition("<!-- verify-output")[2].partition("<!-- /verify-output -->")[0]
    return [line for line in marked.split("```")[1].strip("\n").splitlines() if line.strip() != "…"]


def words(line):
    """A line's words; its decimals as numbers."""
    return [float(word) if re.fullmatch(r"\d+\.\d+", word) else word for word in line.split()]


def approximately(printed):
    """Equal to words of which each number is within 1 %: rounding differs between machines."""
    return [pytest.approx(word, rel=0.01) if isinstance(word, float) else word for word in printed]


def test_readme_shows_what_the_first_command_prints():
    """The claims that README shows are checked again; its last line counts all that there are."""
    shown, every = printed_lines(), shipped_claims()
    claims = [claim for claim in every if f"  {claim.sentence}" in shown]
    fresh = [line for line in table(checked(claims, [reference()])) if line]
    counted = f"  {len(every)} of {len(every)} claims came out as expected"
    assert fresh[-1] == counted.replace(str(len(every)), str(len(claims)))
    for line, printed in zip(shown, [*fresh[:-1], counted], strict=True):
        assert words(line) == approximately(words(printed))


def test_the_claim_that_readme_shows_holds_and_can_fail(example):
    verdict, _ = example
    assert verdict.reasons == ()
    assert all(judged.refuted_by for judged in verdict.comparisons)


def test_the_ledgers_fields_are_all_described(example):
    _, entries = example
    described = re.findall(r"`(\w+)`", CLAIMS.read_text().partition("## The ledger")[2])
    found = {*entries[0]["subject"], *entries[0]["claim"], *entries[0]["claim"]["measurements"][0]}
    assert found - set(described) == set()


def test_every_control_is_listed_with_its_kind():
    rows = re.findall(r"^\| ([\w ]+?) \| ([\w ]+?) \| .+ \| [\d.]+ \|$", CLAIMS.read_text(), flags=re.MULTILINE)
    assert set(rows) == {(control.name, control.kind) for control in CONTROLS}


def test_the_glossary_has_at_most_twenty_entries():
    rows = (ROOT / "docs" / "glossary.md").read_text().split("| --- | --- |\n")[1].splitlines()
    assert 0 < len(rows) <= 20
