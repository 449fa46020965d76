from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from nopos.errors import TrainingError
from nopos.model import recipes
from nopos.storage import checkpoints
from tests.support.command import complaint


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

    def spoilt(recipe, seeds, device, *, kernel):
        failure = TrainingError("training tiny, seed 1: the loss is nan at step 2; nothing was saved")
        return [failure if one.seed == 1 else one for one in real(recipe, seeds, device, kernel=kernel)]

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
    assert [path for path in own_cache.iterdir() if path.suffix != ".lock" and path.name != "kernels"] == []
