"""Test-only: records of claims and subjects, as `nopos.claims.records` makes them."""

from __future__ import annotations

from typing import Any

REFUTERS = [{"name": "untrained", "kind": "broken"}, {"name": "relay", "kind": "other mechanism"}]


def recorded(claim_id: str = "test_a.py::test_W_pos_is_zero", verdict: str = "holds", **changes: Any) -> dict[str, Any]:
    """A claim with two measurements; the changes hold."""
    holds = verdict == "holds"
    return {
        "id": claim_id,
        "statement": "It is.",
        "evidence": "causal",
        "source": "here",
        "refutes": "",
        "requested": "",
        "verdict": verdict,
        "as_expected": holds,
        "reason": None if holds else "it is, on m: refuted: share: got 2",
        "seconds": 0.5,
        "measurements": [measured("loss", 0.25, "nats"), measured("share", 0.5 if holds else 2.0)],
        "controls": [named | {"verdict": "refuted"} for named in REFUTERS],
    } | changes


def measured(name: str, value: float, unit: str = "", **changes: Any) -> dict[str, Any]:
    """A comparison with a limit of 1 that two controls refute."""
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "operator": "<",
        "limit": 1.0,
        "margin": 1.0 - value,
        "holds": value < 1.0,
        "refuted_by": REFUTERS,
    } | changes


def not_run(claim_id: str = "test_a.py::test_W_pos_is_zero") -> dict[str, Any]:
    """A claim that was planned."""
    return recorded(claim_id, "not run", reason="W_pos is zero: was to run and did not", measurements=[], controls=[])


def known(name: str, role: str = "subject", **changes: Any) -> dict[str, Any]:
    """What identifies a subject."""
    return {
        "name": name,
        "role": role,
        "kind": None if role == "subject" else "near miss",
        "number": None if role == "subject" else 1,
        "made_for": None,
        "description": "d",
        "sha256": "ab" * 32,
        "config": {},
        "recipe": None,
        "seed": None,
    } | changes
