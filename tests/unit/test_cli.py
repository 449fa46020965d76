from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from nopos import verify
from nopos.errors import TrainingError
from nopos.model import recipes
from nopos.model.config import ModelConfig
from nopos.model.parameters import initial_parameters
from nopos.model.recipes import Recipe
from nopos.storage import checkpoints
from nopos.subjects import shipped
from nopos.subjects.controls import UNTRAINED
from nopos.subjects.shipped import checkpoint_path

CLAIM = """
from nopos import claim
from nopos.subjects.controls import UNTRAINED

@claim(evidence="behavioural", source="here", refuted_by=[UNTRAINED])
def test_the_loss_is_low(subject, measure):
    '''The loss is low.'''
    assert measure("loss", subject.loss_at(1), "nats") < 0.1
"""


@pytest.fixture
def one_claim(tmp_path, monkeypatch):
    """Let `nopos verify` find one quick claim instead of the shipped ones."""
    folder = tmp_path / "claims"
    folder.mkdir()
    monkeypatch.setattr(shipped, "CLAIMS", folder)
    file = folder / f"test_{tmp_path.name}.py"  # importing one name twice in a process gives the first
    file.write_text(CLAIM)
    return file


def complaint(output):
    """The one line, whichever stream it is on, that says what is wrong."""
    _, out, err = output
    assert "Traceback" not in out + err
    (line,) = [line for line in (out + err).splitlines() if "nopos: " in line]
    return line


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
    torch.save(UNTRAINED.build().checkpoint.parameters, tmp_path / "hooked.pt")
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


@pytest.fixture
def in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "folder"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "--recipe", "marathon"], "recipe is 'marathon'; it must be one of notebook, sprint"),
        (["verify", "--recipe", "sprint", "--seed", "-1"], "seed is -1; it must be an integer of at least 0"),
        (["verify", "--seed", "3"], "seed is given without a recipe"),
        (["verify", "--recipe", "sprint", "--device", "tpu"], "device is 'tpu'; it must be cpu or cuda"),
        (["verify", "--checkpoint", "none.safetensors"], "none.safetensors: no such file"),
        (["verify", "--checkpoint", ""], "checkpoint is empty; name a file"),
        (["verify", "--device", "cpu"], "device is given, but nothing is trained"),
        (["verify", "--checkpoint", "none.pt", "--device", "cpu"], "device is given, but nothing is trained"),
        (["verify", "--checkpoint", "."], ".: is a folder; a checkpoint is a .safetensors, .pt or .pth file"),
        (["verify", "--checkpoint", "model.txt"], "model.txt: ends in .txt"),
        (["train", "--recipe", "marathon"], "recipe is 'marathon'"),
        (["train", "--recipe", "sprint", "--seed", "-4"], "seed is -4"),
        (["train", "--recipe", "sprint", "--seeds", "5-2"], "seeds is '5-2'; it must be a range such as 0-9"),
        (["train", "--recipe", "sprint", "--seeds", "a-b"], "seeds is 'a-b'"),
        (["train", "--recipe", "sprint", "--seeds", "3"], "seeds is '3'"),
        (["train", "--recipe", "sprint", "--seeds", f"0-{2**70}"], "seed is too large; it must be below 2^63"),
        (["train", "--recipe", "sprint", "--seeds", f"0-{2**60}"], "it must be a range of at most 1000000 seeds"),
        (
            ["train", "--recipe", "sprint", "--precision", "half"],
            "precision is 'half'; it must be one of full",
        ),
        (["train", "--recipe", "sprint", "--seeds", f"0-{'9' * 5000}"], "seeds is '0-99999"),
        (["train", "--recipe", "sprint", "--seed", "9" * 300], "seed is too large; it must be below 2^63"),
        (["verify", "--recipe", "sprint", "--seed", "9" * 300], "seed is too large; it must be below 2^63"),
        (["verify", "--device", "tpu"], "device is 'tpu'; it must be cpu or cuda"),
        (["verify", "--json", "."], ".: is a folder; give the name of a file for the ledger"),
        (["verify", "--json", ""], "is a folder; give the name of a file for the ledger"),
        (["verify", "--checkpoint", "x" * 300], "ends in nothing"),
        (["train", "--recipe", "sprint", "--device", "tpu"], "device is 'tpu'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(own_cache, nopos, arguments, message):
    output = nopos(*arguments)
    assert output[0] == 2
    assert message in complaint(output)
    assert not own_cache.exists() or list(own_cache.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("command", [["verify"], ["verify", "--recipe", "sprint"], ["train", "--recipe", "sprint"]])
def test_cuda_where_there_is_none_is_one_line_and_exit_code_2(own_cache, nopos, command):
    output = nopos(*command, "--device", "cuda")
    assert output[0] == 2
    assert "device is cuda, but torch finds no CUDA here; use cpu" in complaint(output)


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


def test_a_model_of_other_sizes_than_the_claims_are_about_is_one_line(nopos, tmp_path, tiny_recipe):
    small = Recipe(name="small", model=ModelConfig(n_layers=1), train=tiny_recipe.train)
    checkpoints.save(checkpoints.train(small, 0, torch.device("cpu")), tmp_path / "small.safetensors")
    output = nopos("verify", "--checkpoint", tmp_path / "small.safetensors")
    assert output[0] == 2
    assert "is a model with n_layers 1; the claims are about n_layers 2" in complaint(output)


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
    [("--json", "l.json"), ("--checkpoint", "a.pt"), ("--recipe", "sprint"), ("--seed", "0"), ("--device", "cpu")],
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


def test_a_checkpoint_of_another_shape_is_one_line(nopos, tmp_path, micro):
    torch.save(initial_parameters(micro, 0), tmp_path / "micro.pt")
    output = nopos("verify", "--checkpoint", tmp_path / "micro.pt")
    assert output[0] == 2
    assert "embed.W_E is [7, 8]; this model needs [300, 64]" in complaint(output)


@pytest.fixture
def no_work(monkeypatch):
    """Let training and the evaluation of claims fail the test."""
    monkeypatch.setattr(checkpoints, "train_together", None)
    monkeypatch.setattr(verify, "check", None)


def test_places_that_cannot_be_written_are_one_line_before_any_work(nopos, in_the_way, no_work, monkeypatch):
    for arguments in (
        ["verify", "--json", in_the_way.parent / "l.json"],
        ["train", "--recipe", "sprint", "--out", in_the_way],
    ):
        output = nopos(*arguments)
        assert output[0] == 2
        assert "cannot be written" in complaint(output)
    monkeypatch.setenv("NOPOS_CACHE_DIR", str(in_the_way))
    for arguments in (["verify", "--recipe", "sprint"], ["train", "--recipe", "sprint"]):
        output = nopos(*arguments)
        assert output[0] == 2
        assert "cannot be written" in complaint(output)


@pytest.mark.parametrize("arguments", [[], ["dance"], ["verify", "--seed", "x"], ["train"]], ids=str)
def test_a_command_line_that_cannot_be_read_ends_with_2(nopos, arguments):
    assert nopos(*arguments)[0] == 2


def test_train_writes_models_that_verify_takes_and_prints_their_loss(
    own_cache, nopos, tmp_path, monkeypatch, tiny_recipe
):
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny_recipe)
    code, out, _ = nopos("train", "--recipe", "tiny", "--seeds", "0-2", "--out", tmp_path / "models")
    assert code == 0
    assert [line.split(" nats")[0][:26] for line in out.splitlines()] == [
        f"tiny seed {seed}: held-out loss" for seed in range(3)
    ]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        f"tiny-seed-{seed}.{ending}" for seed in range(3) for ending in ("json", "safetensors")
    ]


def test_a_less_exact_model_says_so_in_its_name(own_cache, nopos, tmp_path, tiny_recipe, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny_recipe)
    arguments = ("train", "--recipe", "tiny", "--device", "cpu", "--out", tmp_path)
    for precision, name in (("full", "tiny"), ("bfloat16", "tiny-bfloat16")):
        code, out, _ = nopos(*arguments, "--precision", precision)
        assert code == 0
        assert out.startswith(f"{name} seed 0: held-out loss")
        assert (tmp_path / f"{name}-seed-0.safetensors").exists()
    exact, rough = (checkpoints.load(tmp_path / f"{name}-seed-0.safetensors") for name in ("tiny", "tiny-bfloat16"))
    assert (exact.train.precision, rough.train.precision) == ("full", "bfloat16")
    assert exact.losses != rough.losses


def test_a_member_that_diverges_is_one_line_and_the_others_are_trained(own_cache, nopos, tiny_recipe, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny_recipe)
    real = checkpoints.train_together

    def spoilt(recipe, seeds, device):
        failure = TrainingError("training tiny, seed 1: the loss is nan at step 2; nothing was saved")
        return [failure if one.seed == 1 else one for one in real(recipe, seeds, device)]

    monkeypatch.setattr(checkpoints, "train_together", spoilt)
    code, out, err = nopos("train", "--recipe", "tiny", "--device", "cpu", "--seeds", "0-2")
    assert code == 1
    assert [line.split(":")[0] for line in out.splitlines()] == ["tiny seed 0", "tiny seed 2"]
    assert err == "nopos: training tiny, seed 1: the loss is nan at step 2; nothing was saved\n"


def printing_to(output, lines, *arguments):
    """Exit code and standard error of a command that prints lines to a file descriptor; it checks nothing."""
    code = (
        "import sys, nopos.cli as cli\n"
        f"cli._verify = lambda options: print('a claim\\n' * {lines}) or 0\n"
        f"sys.exit(cli.main({list(arguments)}))"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # which users rarely set
    with os.fdopen(output, "wb") as file:
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    return result.returncode, result.stderr


PRINTING = [(1, "verify", "--list"), (100_000, "verify", "--list"), (0, "--help")]
"""What Python writes when it ends, what it writes at once, and what argparse writes."""


@pytest.mark.parametrize("printing", PRINTING, ids=str)
def test_a_reader_that_goes_away_is_met_in_silence(printing):
    reader, output = os.pipe()
    os.close(reader)
    assert printing_to(output, *printing) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("printing", PRINTING, ids=str)
def test_an_output_that_cannot_be_written_is_one_line(printing):
    code, err = printing_to(os.open("/dev/full", os.O_WRONLY), *printing)
    assert code == 2
    assert err == "nopos: the output cannot be written (No space left on device); send it elsewhere\n"


@pytest.mark.parametrize("command", [pytest.param("verify", marks=pytest.mark.slow), "train"])
def test_ctrl_c_during_training_ends_with_130_and_leaves_nothing(own_cache, command):
    code = (
        "import signal, sys, nopos.training.ensemble as e, nopos.cli as cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "real = e.gradients\n"
        "def tell(*a, **k):\n"
        "    print('training', file=sys.__stderr__, flush=True)\n"
        "    return real(*a, **k)\n"
        "e.gradients = tell\n"
        f"sys.exit(cli.main([{command!r}, '--recipe', 'notebook', '--device', 'cpu']))"
    )
    environment = {**os.environ, "NOPOS_CACHE_DIR": str(own_cache)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        stalled = threading.Timer(120, process.kill)
        stalled.start()
        try:
            while (line := process.stderr.readline()) != "training\n":
                assert line, "it ended, or stalled, before it trained"
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            stalled.cancel()
            process.kill()  # or leaving the block would wait for the end of a training
    assert process.returncode == 130
    lines = [line for line in (out + err).splitlines() if line != "training"]
    assert lines == ["nopos: interrupted; nothing unfinished was saved"]
    assert [path for path in own_cache.iterdir() if path.suffix != ".lock"] == []
