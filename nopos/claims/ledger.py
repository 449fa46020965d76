"""What was measured in a run: collects records, says whether all came out as expected, and makes the JSON of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from nopos.claims.records import Record, failed_record, unloaded_record
from nopos.environment import environment

SCHEMA = 4


@dataclass
class _Entry:
    """A subject's record, and its claims' records by id."""

    subject: Record
    claims: dict[str, Record] = field(default_factory=dict)


class Ledger:
    """Collects the records of a run; its claims are in the order in which they were planned."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._planned: dict[str, dict[str, Record]] = {}
        self.cut_short = False
        """Whether a worker went down before its claims were known."""

    def add(self, subject: Record, claim: Record) -> None:
        """Take in one claim on one subject. Workers may each evaluate a control; the first record stands.

        Subjects are distinguished by all that their records say, never by name alone: two controls of one name are two,
        and have two numbers.
        """
        key = json.dumps(subject, sort_keys=True)
        self._entries.setdefault(key, _Entry(subject)).claims.setdefault(claim["id"], claim)

    def plan(self, subject: str, claim: Record) -> None:
        """Take in that a claim was to run on a subject of that name."""
        self._planned.setdefault(subject, {}).setdefault(claim["id"], claim)

    def fail(self, subject: str, claim_id: str, problem: str) -> None:
        """Take in that the fixtures of a planned claim failed, before its verdict or after it."""
        planned = self._planned[subject]
        under_test = [entry.claims for entry in self._entries.values() if _is_under_test(entry.subject, subject)]
        for claims in [planned, *(known for known in under_test if claim_id in known)]:
            claims[claim_id] = failed_record(claims[claim_id], problem)

    def __bool__(self) -> bool:
        return bool(self._entries or self._planned)

    @property
    def complete(self) -> bool:
        """Whether every claim that was to run did run."""
        verdicts = [claim["verdict"] for subject in self.tested() for claim in subject["claims"]]
        return not self.cut_short and "not run" not in verdicts

    def as_expected(self) -> bool:
        """Whether every claim in scope was run and came out as it should; not where all claims are out of scope."""
        return self.complete and not self.all_out_of_scope() and False not in self._as_expected()

    def all_out_of_scope(self) -> bool:
        """Whether there are claims, and none is about any subject under test."""
        found = self._as_expected()
        return bool(found) and set(found) == {None}

    def _as_expected(self) -> list[bool | None]:
        return [claim["as_expected"] for subject in self.tested() for claim in subject["claims"]]

    def tested(self) -> list[Record]:
        """The subjects under test, each with its claims; a planned claim without a verdict was not run."""
        loaded = [entry for entry in self._entries.values() if entry.subject["role"] == "subject"]
        names = {entry.subject["name"] for entry in loaded}
        loaded += [_Entry(unloaded_record(name)) for name in self._planned if name not in names]
        first = {name: rank for rank, name in enumerate(self._planned)}
        loaded.sort(key=lambda entry: first.get(entry.subject["name"], len(first)))
        return [self._listed(entry, self._planned.get(entry.subject["name"], {})) for entry in loaded]

    def subjects(self) -> list[Record]:
        """Each subject with its claims, those under test first and then the controls."""
        controls = [entry for entry in self._entries.values() if entry.subject["role"] != "subject"]
        return [*self.tested(), *(self._listed(entry, {}) for entry in controls)]

    def _listed(self, entry: _Entry, planned: dict[str, Record]) -> Record:
        claims = planned | entry.claims
        order = dict.fromkeys(claim_id for ids in self._planned.values() for claim_id in ids)
        in_order = [claim_id for claim_id in {**order, **claims} if claim_id in claims]
        return entry.subject | {"claims": [claims[claim_id] for claim_id in in_order]}

    def to_json(self, *, command: str, seconds: float) -> str:
        """The whole ledger as one JSON object.

        Args:
            command: the line that made it.
            seconds: that the run took.
        """
        content = {
            "schema": SCHEMA,
            "complete": self.complete,
            "command": command,
            "environment": environment(),
            "seconds": round(seconds, 2),
            "subjects": self.subjects(),
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _is_under_test(subject: Record, name: str) -> bool:
    return bool(subject["role"] == "subject" and subject["name"] == name)
