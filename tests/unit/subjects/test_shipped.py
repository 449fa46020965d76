from __future__ import annotations

import pytest

from nopos.errors import ClaimError
from nopos.subjects import shipped
from nopos.subjects.shipped import CLAIMS, checking_hash, claims_in, shipped_claims

HEAD = """
from nopos import claim
from nopos.subjects.controls import UNTRAINED

"""
CLAIM = """
@claim(evidence="behavioural", source="here", refuted_by=[UNTRAINED])
def test_{0}(subject, measure):
    '''It is.'''
    assert measure("loss", subject.loss, "nats") < 0.1
"""


def test_the_shipped_claims_are_those_of_the_folder_in_the_order_of_the_files():
    files = [claim.id.partition("::")[0] for claim in shipped_claims()]
    assert files == sorted(files)
    assert set(files) == {f"tests/claims/{path.name}" for path in CLAIMS.glob("test_*.py")}
    assert shipped_claims() is shipped_claims()


def test_claims_stand_in_the_order_in_which_they_are_written(tmp_path):
    (tmp_path / "test_b.py").write_text(HEAD + CLAIM.format("one") + CLAIM.format("another"))
    (tmp_path / "test_a.py").write_text(HEAD + CLAIM.format("third") + "def helper(): ...\n")
    (tmp_path / "other.py").write_text("1 / 0")
    ids = [claim.id for claim in claims_in(tmp_path)]
    assert ids == [f"tests/claims/test_{name}" for name in ("a.py::test_third", "b.py::test_one", "b.py::test_another")]


def test_a_test_that_is_no_claim_is_refused(tmp_path):
    (tmp_path / "test_a.py").write_text("def test_plain(): ...\n")
    with pytest.raises(ClaimError, match="test_plain is no claim; mark it with @claim"):
        claims_in(tmp_path)


def test_two_claims_of_one_name_are_refused(tmp_path):
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / name).write_text(HEAD + CLAIM.format("same"))
    with pytest.raises(
        ClaimError, match=r"two claims are called test_same; rename one \(.*test_a.py:6, .*test_b.py:6\)"
    ):
        claims_in(tmp_path)


def test_the_hash_of_what_checks_changes_with_a_claim_a_control_or_a_module_and_with_nothing_else(
    tmp_path, monkeypatch
):
    written = {
        "claims": "claims/test_a.py",
        "control": "fixtures/checkpoints/a.safetensors",
        "module": "package/methods/a.py",
        "other": "package/bench/a.py",
    }
    for path in written.values():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("1")
    for name, folder in (("CLAIMS", "claims"), ("FIXTURES", "fixtures"), ("_PACKAGE", "package")):
        monkeypatch.setattr(shipped, name, tmp_path / folder)
    hashes = [checking_hash()]
    for name, path in written.items():
        (tmp_path / path).write_text("2")
        hashes.append(checking_hash())
        assert (hashes[-1] != hashes[-2]) == (name != "other")
