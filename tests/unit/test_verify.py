from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256

import pytest
import torch

from nopos.model import recipes
from nopos.model.config import ModelConfig
from nopos.model.parameters import initial_parameters
from nopos.storage import checkpoints
from nopos.subjects.controls import UNTRAINED, reference
from nopos.subjects.shipped import checkpoint_path
from tests.support.command import CLAIM, complaint


def test_verify_ends_with_0_when_every_claim_holds_and_writes_the_ledger(one_claim, nopos, tmp_path):
    code, out, _ = nopos("verify", "--json", tmp_path / "ledger.json")
    assert code == 0
    assert "1 of 1 claims came out as expected" in out
    content = json.loads((tmp_path / "ledger.json").read_text())
    assert [subject["name"] for subject in content["subjects"]] == ["reference", "untrained"]
    assert content["subjects"][0]["sha256"] == sha256(checkpoint_path("reference").read_bytes()).hexdigest()


def test_a_ledger_may_be_written_over_a_ledger(one_claim, nopos, tmp_path):
    assert [nopos("verify", "--json", tmp_path / "ledger.json")[0] for _ in range(2)] == [0, 0]


def test_verify_ends_with_1_on_a_model_for_which_a_claim_is_false(one_claim, nopos):
    code, out, _ = nopos("verify", "--checkpoint", checkpoint_path("two_back"))
    assert code == 1
    assert "REFUTED !" in out
    assert "recipe sprint, but steps 800, but target_offset 2, seed 0" in out
    assert "0 of 1 claims came out as expected, all but:\n    the loss is low" in out


def test_verify_takes_several_models_and_a_hooked_transformer_file(one_claim, nopos, tmp_path):
    torch.save(UNTRAINED.model_for(reference()).checkpoint.parameters, tmp_path / "hooked.pt")
    code, out, _ = nopos("verify", "--checkpoint", tmp_path / "hooked.pt", "--checkpoint", checkpoint_path("reference"))
    assert code == 1
    assert "hooked.pt (weights of unknown training" in out
    assert "reference.safetensors (recipe notebook, seed 0" in out


def test_verify_with_nothing_to_run_ends_with_2(one_claim, nopos):
    one_claim.unlink()
    assert nopos("verify")[0] == 2


def test_options_for_pytest_do_not_decide_which_claims_run(one_claim, nopos, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k nothing")
    assert nopos("verify")[0] == 0


OTHER_CLAIM = """
@claim(evidence="behavioural", source="here", refuted_by=[UNTRAINED], requested="a high accuracy")
def test_W_pos_or_not_the_accuracy_is_high(subject, measure):
    '''It is high.'''
    assert measure("accuracy", subject.accuracy_at(1)) > 0.99
"""


LOW, HIGH = "  1  the loss is low (behavioural)", "  2  W_pos or not the accuracy is high (behavioural, requested)"


@pytest.fixture
def two_claims(one_claim):
    one_claim.write_text(CLAIM + OTHER_CLAIM)


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ("loss", [LOW]),
        ("LOSS", [LOW]),
        ("not loss", [HIGH]),
        ("accu and high", [HIGH]),
        ("low or accuracy", [LOW, HIGH]),
        ("(low or accuracy) and not W_POS", [LOW]),
        ("test_test_the", [LOW, HIGH]),
        ("requested", [HIGH]),
        ("claim", [LOW, HIGH]),
    ],
)
def test_the_claims_that_an_expression_selects_are_listed_and_none_is_checked(
    two_claims, nopos, no_work, expression, selected
):
    assert nopos("verify", "--list", "-k", expression) == (0, "\n".join(selected) + "\n", "")


def test_the_selected_claims_alone_are_checked(two_claims, nopos, tmp_path):
    code, out, _ = nopos("verify", "-k", "accuracy", "--json", tmp_path / "ledger.json")
    assert code == 0
    assert "1 of 1 claims came out as expected" in out
    content = json.loads((tmp_path / "ledger.json").read_text())
    assert content["command"] == f"nopos verify -k accuracy --json {tmp_path / 'ledger.json'}"
    assert [claim["requested"] for claim in content["subjects"][0]["claims"]] == ["a high accuracy"]


@pytest.mark.parametrize("listing", [[], ["--list"]], ids=["check", "list"])
@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("loss and", "-k is 'loss and'; it must be words with and, or, not"),
        ("(loss", "-k is '(loss'; it must be words with and, or, not"),
        ("loss(a=1)", "-k is 'loss(a=1)'; it must be words with and, or, not (a word takes no options)"),
        ("dance", "-k is 'dance'; it selects none of the 2 claims that --list shows"),
    ],
)
def test_an_expression_that_selects_nothing_is_one_line(two_claims, nopos, no_work, listing, expression, message):
    output = nopos("verify", "-k", expression, *listing)
    assert output[0] == 2
    assert message in complaint(output)


def test_ctrl_c_during_the_claims_is_one_line(one_claim, nopos):
    text = CLAIM.replace("    assert", "    raise KeyboardInterrupt\n    assert")
    one_claim.write_text(text)
    assert nopos("verify") == (130, "", "nopos: interrupted; nothing unfinished was saved\n")


@pytest.mark.parametrize("there", ["weights", "manifest", "notes"])
def test_a_ledger_is_written_over_nothing_but_a_ledger(one_claim, nopos, tmp_path, there, tiny_recipe):
    weights = tmp_path / "model.safetensors"
    checkpoints.save(checkpoints.load(checkpoint_path("reference")), weights)
    (tmp_path / "notes.txt").write_text("mine")
    path = {"weights": weights, "manifest": tmp_path / "model.json", "notes": tmp_path / "notes.txt"}[there]
    before = path.read_bytes()
    output = nopos("verify", "--checkpoint", weights, "--json", path)
    assert output[0] == 2
    assert "exists and is not a ledger; give another name" in complaint(output)
    assert path.read_bytes() == before


def test_a_claim_that_is_not_about_a_model_is_out_of_scope_and_counted_apart(odd_sizes, own_cache, nopos, tmp_path):
    path, _ = odd_sizes
    code, out, err = nopos("verify", "--checkpoint", path, "-k", "folded or law_of", "--json", tmp_path / "l.json")
    assert (code, err) == (0, "")
    assert "out of scope · constructive" in out
    assert "1 of 1 claims came out as expected" in out
    assert "out of scope are 1 more: needs a second layer; needs 21 positions or more (1)" in out
    claims = json.loads((tmp_path / "l.json").read_text())["subjects"][0]["claims"]
    found = {one["verdict"]: (one["as_expected"], one["reason"], one["measurements"] == []) for one in claims}
    assert found == {
        "holds": (True, None, False),
        "out of scope": (None, "needs a second layer; needs 21 positions or more", True),
    }


def test_a_run_in_which_every_claim_is_out_of_scope_ran_nothing(odd_sizes, nopos):
    path, _ = odd_sizes
    output = nopos("verify", "--checkpoint", path, "-k", "law_of_dilution")
    assert output[0] == 2
    assert output[2].startswith("nopos: no claim is about these models; all that were selected are out of scope")


def test_bidirectional_without_a_file_is_one_line(nopos, no_work):
    output = nopos("verify", "--bidirectional")
    assert output[0] == 2
    assert complaint(output) == "nopos: bidirectional is given, but no file; name a checkpoint, or leave it out"


def test_a_damaged_cache_entry_is_one_line_and_the_run_goes_on(own_cache, one_claim, nopos, monkeypatch, tiny_recipe):
    monkeypatch.setitem(recipes.RECIPES, "tiny", replace(tiny_recipe, model=ModelConfig()))
    assert nopos("verify", "--recipe", "tiny")[0] == 1
    (weights,) = own_cache.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8])
    output = nopos("verify", "--recipe", "tiny")
    assert output[0] == 1
    assert "it was set aside, and the model trained again" in complaint(output)


@pytest.mark.parametrize(
    ("again", "message"),
    [
        ("a.safetensors", "nopos: a.safetensors: is named twice; name each model once"),
        ("./a.safetensors", "nopos: ./a.safetensors: is named twice, also as a.safetensors; name each model once"),
        ("link.safetensors", "nopos: link.safetensors: is named twice, also as a.safetensors; name each model once"),
    ],
)
def test_a_model_named_twice_is_one_line(nopos, no_work, tmp_path, monkeypatch, again, message):
    monkeypatch.chdir(tmp_path)
    checkpoints.save(checkpoints.load(checkpoint_path("reference")), tmp_path / "a.safetensors")
    (tmp_path / "link.safetensors").symlink_to("a.safetensors")
    output = nopos("verify", "--checkpoint", "a.safetensors", "--checkpoint", again)
    assert output[0] == 2
    assert complaint(output) == message


@pytest.mark.parametrize(
    "option",
    [
        ("--bidirectional",),
        ("--json", "l.json"),
        ("--checkpoint", "a.pt"),
        ("--recipe", "sprint"),
        ("--seed", "0"),
        ("--device", "cpu"),
    ],
    ids=lambda option: option[0],
)
def test_an_option_that_list_has_no_use_for_is_one_line(nopos, no_work, option):
    output = nopos("verify", "--list", *option)
    assert output[0] == 2
    assert f"{option[0]} is given with --list, which checks no claim; leave out one of the two" in complaint(output)


def test_a_ledger_in_a_folder_that_is_not_there_is_one_line_and_makes_none(nopos, no_work, tmp_path):
    output = nopos("verify", "--json", tmp_path / "new" / "ledger.json")
    assert output[0] == 2
    assert complaint(output) == (
        f"nopos: {tmp_path / 'new'}: no such folder; make it first, or give another place for the ledger"
    )
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_whose_shapes_show_no_one_size_is_one_line(nopos, tmp_path, micro):
    torch.save(initial_parameters(micro, 0) | {"unembed.b_U": torch.zeros(9)}, tmp_path / "micro.pt")
    output = nopos("verify", "--checkpoint", tmp_path / "micro.pt")
    assert output[0] == 2
    assert "unembed.b_U is [9]; this model needs [7]" in complaint(output)
