"""The table that a person reads: each claim on each subject under test, with what was measured and what refutes it."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping

from nopos.claims.claim import sentence
from nopos.claims.ledger import Ledger
from nopos.claims.measure import rounded
from nopos.claims.records import Record

WIDTH = 120
NAMED = 3
"""How many of the claims that did not run are named; `-x` leaves most of them."""


def table(ledger: Ledger, *, all_claims: bool = True) -> list[str]:
    """The lines of the table; none is longer than WIDTH columns, names of one word aside.

    Args:
        ledger: what was measured.
        all_claims: whether claims that came out as expected are listed too, or counted only.
    """
    lines: list[str] = []
    for subject in ledger.tested():
        facts = [subject["description"], subject["sha256"] and f"sha256 {subject['sha256'][:12]}"]
        known = ", ".join(fact for fact in facts if fact)
        lines += ["", f"{subject['name']} ({known})" if known else subject["name"]]
        titles = _titles(subject["claims"])
        for claim in subject["claims"]:
            if claim["verdict"] != "not run" and (all_claims or claim["as_expected"] is False):
                lines += _claim_lines(claim, titles[claim["id"]])
        lines += _closing_lines(subject, titles)
    if ledger.cut_short:
        lines += ["", "The run was cut short: claims that were not reached are not listed."]
    return lines


def _titles(claims: list[Record]) -> dict[str, str]:
    """The sentence of each claim by its id; with its file and class where several of that name are listed."""
    sentences = {claim["id"]: sentence(claim["id"]) for claim in claims}
    several = {one for one, times in Counter(sentences.values()).items() if times > 1}
    return {
        claim_id: f"{title} ({_place(claim_id)})" if title in several else title
        for claim_id, title in sentences.items()
    }


def _place(claim_id: str) -> str:
    path, _, rest = claim_id.partition("::")
    return "::".join([path, *rest.partition("[")[0].split("::")[:-1]])


def _claim_lines(claim: Record, title: str) -> list[str]:
    lines = ["", *_wrapped(title, "  ", "  ")]
    facts = [f"{claim['verdict'].upper()} !" if claim["as_expected"] is False else claim["verdict"], claim["evidence"]]
    facts += ["requested"] if claim["requested"] else []
    unrefuted = [control for control in claim["controls"] if control["verdict"] != "refuted"]
    facts += [f"{control['verdict']} on {control['name']} ({control['kind']})" for control in unrefuted]
    lines += _wrapped(" · ".join(facts), "      ", "      ")
    if claim["refutes"]:
        lines += _wrapped(f"refutes: {claim['refutes']}", "      ", "      ")
    lines += _measurement_lines(claim["measurements"])
    if claim["reason"] is not None:
        lines += _wrapped(claim["reason"], "      " if claim["as_expected"] is None else "    ! ", "      ")
    return lines


def _measurement_lines(measurements: list[Record]) -> list[str]:
    """Each measurement with its bound, and beneath it the controls on which it is false; once if all have the same."""
    lines = []
    refuters = [_by_kind(item["refuted_by"]) for item in measurements]
    alike = len(measurements) > 1 and len(set(refuters)) == 1
    for item, refuting in zip(measurements, refuters, strict=True):
        value = f"{rounded(item['value'], item['limit'], digits=4)} {item['unit']}".rstrip()
        bound = f"{item['operator']:>2} {_limit(item['limit'])}"
        lines.append(f"    {' ' if item['holds'] else 'x'} {item['name']:<66} {value:>18} {bound}")
        if refuting and not alike:
            lines += _wrapped(f"false on {refuting}", "          ", "          ")
    if alike and refuters[0]:
        lines += _wrapped(f"each false on {refuters[0]}", "          ", "          ")
    return lines


def _limit(limit: float) -> str:
    """As it is if eight digits can say it, else five of them."""
    exact = f"{limit:.8g}"
    return exact if float(exact) == limit else f"{limit:.5g}"


def _by_kind(controls: Iterable[Record]) -> str:
    """The controls' names, with each kind once: `relay, learned positions (other mechanism); untrained (broken)`."""
    names: dict[str, list[str]] = {}
    for control in controls:
        names.setdefault(control["kind"], []).append(control["name"])
    return "; ".join(f"{', '.join(of_kind)} ({kind})" for kind, of_kind in names.items())


def _closing_lines(subject: Record, titles: Mapping[str, str]) -> list[str]:
    claims = subject["claims"]
    missing = [titles[claim["id"]] for claim in claims if claim["verdict"] == "not run"]
    others = [
        f"{titles[claim['id']]}: {_wrong(claim, subject['name'])}"
        for claim in claims
        if claim["as_expected"] is False and claim["verdict"] != "not run"
    ]
    outside = [claim["reason"] for claim in claims if claim["as_expected"] is None]
    asked = len(claims) - len(outside)
    good = asked - len(others) - len(missing)
    counted = f"  {good} of {asked} claims came out as expected" + (", all but:" if others else "")
    lines = ["", counted, *(line for other in others for line in _wrapped(other, "    ", "      "))]
    if outside:
        reasons = "; ".join(f"{reason} ({times})" for reason, times in Counter(outside).items())
        lines += _wrapped(f"out of scope are {len(outside)} more: {reasons}", "  ", "    ")
    if missing:
        more = [f"and {len(missing) - NAMED} more"] if len(missing) > NAMED else []
        lines += _wrapped(f"{len(missing)} did not run: {'; '.join([*missing[:NAMED], *more])}", "  ", "    ")
    return lines


def _wrong(claim: Record, subject: str) -> str:
    """The first measurement that is false; of a claim that has none, what is wrong with it."""
    first = next((item for item in claim["measurements"] if not item["holds"]), None)
    if first is None:
        return str(claim["reason"]).removeprefix(f"{sentence(claim['id'])}, on {subject}: ")
    got = f"{rounded(first['value'], first['limit'], digits=6)} {first['unit']}".rstrip()
    return f"{first['name']}: got {got}, expected {first['operator']} {_limit(first['limit'])}"


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
