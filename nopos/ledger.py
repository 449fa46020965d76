"""What was measured: one plain record a claim and subject, and from the records the JSON object and the printed table.

Records are dicts of plain values, because they cross from xdist's workers to the process that writes them.
"""

from __future__ import annotations

import json
import os
import platform
import re
import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nopos.claims import Claim, Outcome
    from nopos.subject import Subject

SCHEMA = 1
WIDTH = 100
Record = dict[str, Any]


def subject_record(subject: Subject, role: str, description: str) -> Record:
    """What identifies a subject: its name, role, weights and config, and a phrase on what it is."""
    return {
        "name": subject.name,
        "role": role,
        "description": description,
        "sha256": subject.checkpoint.sha256,
        "config": asdict(subject.config),
    }


def claim_record(claim_id: str, claim: Claim, outcome: Outcome | None, controls: Iterable[Outcome]) -> Record:
    """What came out of a claim on one subject; without an outcome, that it was not run."""
    return {
        "id": claim_id,
        "statement": claim.statement,
        "rung": claim.rung,
        "source": claim.source,
        "expect": claim.expect,
        "verdict": "not run" if outcome is None else outcome.verdict,
        "seconds": 0.0 if outcome is None else round(outcome.seconds, 3),
        "measurements": [] if outcome is None else [asdict(comparison) for comparison in outcome.comparisons],
        "controls": [{"name": control.subject, "verdict": control.verdict} for control in controls],
        "problems": [],
        "arrays": None,
    }


class Ledger:
    """Collects the records of a session; its claims are in the order in which they were planned."""

    def __init__(self) -> None:
        self._subjects: dict[str, Record] = {}
        self._claims: dict[str, dict[str, Record]] = {}
        self._planned: dict[str, dict[str, Record]] = {}
        self.cut_short = False
        """Whether a worker went down before it said what it was to run."""

    def add(self, subject: Record, claim: Record) -> None:
        """Take in one claim on one subject. Workers may each evaluate a control; the first record stands."""
        self._subjects.setdefault(subject["name"], subject)
        self._claims.setdefault(subject["name"], {}).setdefault(claim["id"], claim)

    def plan(self, entries: Iterable[Record]) -> None:
        """Take in which claims were to run on which subjects."""
        for entry in entries:
            self._planned.setdefault(entry["subject"], {}).setdefault(entry["claim"]["id"], entry["claim"])

    def fail(self, subject: str, claim_id: str, problem: str) -> None:
        """Turn a claim into an error that no outcome tells of: its fixtures failed before or after it."""
        planned = self._planned[subject][claim_id]
        claim = self._claims.setdefault(subject, {}).setdefault(claim_id, planned)
        claim["verdict"] = "error"
        claim["problems"] = [*claim["problems"], problem]

    def __bool__(self) -> bool:
        return bool(self._claims or self._planned)

    def as_expected(self) -> bool:
        """Whether every claim on every subject under test was run and came out as it should."""
        tested = [subject for subject in self.subjects() if subject["role"] == "subject"]
        return not self.cut_short and all(as_expected(claim) for subject in tested for claim in subject["claims"])

    def subjects(self) -> list[Record]:
        """Each subject with its claims, those under test first; a planned claim without an outcome was not run."""
        unloaded = {name: {"name": name, "role": "subject", "description": "not loaded", "sha256": None, "config": None}
                    for name in self._planned}  # fmt: skip
        order = {claim_id: None for claims in self._planned.values() for claim_id in claims}
        listed = []
        for name, subject in (unloaded | self._subjects).items():
            claims = self._planned.get(name, {}) | self._claims.get(name, {})
            listed.append(
                {**subject, "claims": [claims[claim_id] for claim_id in {**order, **claims} if claim_id in claims]}
            )
        return sorted(listed, key=lambda subject: subject["role"] != "subject")

    def to_json(self, *, command: str, seconds: float) -> str:
        """The whole ledger as one JSON object."""
        content = {
            "schema": SCHEMA,
            "command": command,
            "environment": environment(),
            "seconds": round(seconds, 2),
            "subjects": self.subjects(),
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def table(self) -> list[str]:
        """The lines a person reads: each claim on each subject under test, with what was measured."""
        lines: list[str] = []
        for subject in self.subjects():
            if subject["role"] != "subject":
                continue
            digest = f", sha256 {subject['sha256'][:12]}" if subject["sha256"] else ""
            lines += ["", f"{subject['name']} ({subject['description']}{digest})"]
            for claim in subject["claims"]:
                lines += _claim_lines(claim)
            lines += _closing_lines(subject["claims"])
        if self.cut_short:
            lines += ["", "The run was cut short: claims that were not reached are not listed."]
        return lines


def environment() -> Record:
    """The facts of machine and software that numbers depend on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "versions": {name: _version(name) for name in ("nopos", "torch", "transformer-lens", "numpy", "pytest")},
    }


def as_expected(claim: Record) -> bool:
    """Whether a claim came out as it should."""
    return bool(claim["verdict"] == claim["expect"]) and not claim["problems"]


def sentence(claim_id: str) -> str:
    """The sentence that a claim's name is."""
    name = claim_id.rsplit("::", 1)[-1].removeprefix("test_")
    return re.sub(r"(?<!(?<![A-Za-z])[Wb])_", " ", name)  # the names of weights keep theirs


def _claim_lines(claim: Record) -> list[str]:
    verdict = claim["verdict"] if as_expected(claim) else f"{claim['verdict'].upper()} !"
    if claim["expect"] == "refuted" and as_expected(claim):
        verdict = "refuted, as expected"
    lines = [f"  {sentence(claim['id'])}", f"      {verdict} · {claim['rung']}"]
    by_verdict: dict[str, list[str]] = {}
    for control in claim["controls"]:
        by_verdict.setdefault(control["verdict"], []).append(control["name"])
    lines[-1] += "".join(f" · {verdict} on {', '.join(names)}" for verdict, names in by_verdict.items())
    for item in claim["measurements"]:
        value = f"{item['value']:.4g} {item['unit']}".rstrip()
        operator, bound = item["bound"].split()
        mark = " " if item["holds"] else "x"
        lines.append(f"    {mark} {item['name']:<58} {value:>18}  {operator} {float(bound):.5g}")
    for problem in claim["problems"]:
        if not problem.startswith("refuted: "):  # the lines marked with an x say so
            lines += textwrap.wrap(problem, WIDTH, initial_indent="    ! ", subsequent_indent="      ")
    return lines


def _closing_lines(claims: list[Record]) -> list[str]:
    others = [sentence(claim["id"]) for claim in claims if not as_expected(claim)]
    counted = f"  {len(claims) - len(others)} of {len(claims)} claims came out as expected"
    return [counted + (", all but:" if others else ""), *(f"    {other}" for other in others)]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
