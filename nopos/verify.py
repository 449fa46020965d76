"""What `nopos verify` does: the shipped claims checked on the models that the command line names."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from nopos.claims.claim import Claim
from nopos.claims.control import Subject
from nopos.claims.keeper import require_ledger_place, write_ledger
from nopos.claims.ledger import Ledger
from nopos.claims.outcome import Controls
from nopos.claims.records import planned_record, records
from nopos.claims.table import table
from nopos.claims.verdict import check
from nopos.errors import ConfigError
from nopos.subjects import loaders, shipped
from nopos.subjects.controls import reference

NAMED = 60
"""Columns that the progress bar gives to the claim's name."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asks for."""

    files: Sequence[str]
    bidirectional: bool
    """Whether files that do not show it are of models without a causal mask."""
    recipe: str | None
    seed: int | None
    device: str | None
    keywords: str | None
    json: str | None
    command: str
    """The command line itself."""


def list_claims(keywords: str | None) -> list[str]:
    """A line for each claim that the expression selects: number, sentence, evidence, and whether it was requested.

    Raises:
        ConfigError: the expression cannot be read, or there is nothing that it selects.
    """
    numbers = {claim.id: number for number, claim in enumerate(shipped.shipped_claims(), 1)}
    return [
        f"{numbers[claim.id]:>3}  {claim.sentence} ({claim.evidence}{', requested' if claim.requested else ''})"
        for claim in selected(keywords)
    ]


def verify(wanted: Wanted) -> bool:
    """Check the claims, write the ledger, print the table; whether all came out as expected.

    Raises:
        NoposError: an option that cannot be, a model that cannot be loaded or trained, or a ledger with no place.
    """
    start = time.perf_counter()
    if wanted.json is not None:
        require_ledger_place(wanted.json)
    loaders.require_possible(recipe=wanted.recipe, seed=wanted.seed, device=wanted.device)
    if wanted.bidirectional and not wanted.files:
        raise ConfigError("bidirectional is given, but no file; name a checkpoint, or leave it out")
    claims = selected(wanted.keywords)
    ledger = checked(claims, _subjects(wanted))
    if wanted.json is not None:  # first of all: who reads what is printed may stop reading
        write_ledger(ledger, wanted.json, command=wanted.command, seconds=time.perf_counter() - start)
    print("\n".join(table(ledger)).strip("\n"))
    if ledger.all_out_of_scope():
        raise ConfigError("no claim is about these models; all that were selected are out of scope")
    return ledger.as_expected()


def checked(claims: Sequence[Claim], subjects: Sequence[Subject]) -> Ledger:
    """Every claim on every subject, with a bar that names the claim and says how long the rest takes."""
    ledger, controls = Ledger(), Controls()
    for subject in subjects:
        for claim in claims:
            ledger.plan(subject.name, planned_record(claim))
    bar = "{n_fmt} of {total_fmt} claims, {remaining} left: {desc}"
    total = len(claims) * len(subjects)
    with tqdm(total=total, bar_format=bar, disable=None, leave=False, file=sys.stderr) as progress:
        for subject in subjects:
            for claim in claims:
                progress.set_description_str(claim.sentence[:NAMED])
                for entry in records(check(claim, subject, controls), subject, controls):
                    ledger.add(entry["subject"], entry["claim"])
                progress.update()
    return ledger


def selected(keywords: str | None) -> list[Claim]:
    """The shipped claims that an expression in pytest's `-k` selects; all of them without one.

    Raises:
        ConfigError: the expression cannot be read, or there is nothing that it selects.
    """
    claims = shipped.shipped_claims()
    if not claims:
        raise ConfigError(f"{shipped.CLAIMS}: holds no claims; there is nothing to run")
    if not keywords:  # as in pytest, an empty expression selects all
        return list(claims)
    # Private, but what is promised is pytest's meaning of `-k`, and this is where pytest keeps it.
    from _pytest.mark.expression import Expression

    try:
        expression = Expression.compile(keywords)
        found = [claim for claim in claims if expression.evaluate(_Names(claim))]
    except SyntaxError as error:
        raise ConfigError(f"-k is {keywords!r}; it must be words with and, or, not ({error.msg})") from None
    if not found:
        raise ConfigError(f"-k is {keywords!r}; it selects none of the {len(claims)} claims that --list shows")
    return found


class _Names:
    """Whether a word of an expression is part of a name of a claim, as pytest decides it for a test."""

    def __init__(self, claim: Claim) -> None:
        marks = [mark.name for mark in getattr(claim.function, "pytestmark", [])]
        own = ["claim", "requested"] if claim.requested else ["claim"]
        self._names = [name.lower() for name in (claim.name, Path(claim.id.partition("::")[0]).name, *own, *marks)]

    def __call__(self, name: str, /, **options: str | int | bool | None) -> bool:
        if options:
            raise SyntaxError("a word takes no options")
        return any(name.lower() in known for known in self._names)


def _subjects(wanted: Wanted) -> list[Subject]:
    if not wanted.files and wanted.recipe is None:
        return [reference()]
    named = loaders.named_subjects(
        wanted.files,
        recipe=wanted.recipe,
        seed=wanted.seed,
        device=wanted.device,
        bidirectional=wanted.bidirectional,
    )
    return list(named)
