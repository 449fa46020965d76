from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch

from nopos.errors import StorageError, TrainingError
from nopos.populations import cluster, software, work
from nopos.populations import folder as folders
from nopos.populations import sweep as sweeps
from nopos.populations.folder import Folder
from nopos.storage.checkpoints import load
from nopos.training import trainer
from tests.support.command import complaint
from tests.support.quick_sweep import quick_evaluate


@pytest.fixture
def sweep(nopos, in_process, tmp_path):
    """Run `nopos sweep` on six models of two settings, in a folder that can be named."""

    def run(name="sweep", *more, workers=2):
        grid = ("--grid", "train.peak_lr=0.001,0.002")
        return nopos("sweep", "--out", tmp_path / name, "--recipe", "tiny", "--seeds", "0-2", *grid,
                     "--workers", workers, "--kernel", "torch", *more)  # fmt: skip

    return run


def files_of(path):
    """All that two runs of one sweep must have in common."""
    kept = ["summary.json", "summary.md", "controls.json", "ledgers/*.json", "models/*.safetensors"]
    return {each.relative_to(path): each.read_bytes() for pattern in kept for each in sorted(path.glob(pattern))}


def index(path):
    return [json.loads(line) for line in (path / "index.jsonl").read_text().splitlines()]


def counts(path):
    """How often each thing happened to each model."""
    return Counter((event["model"], event["event"]) for event in index(path))


def test_a_sweep_leaves_a_checkpoint_and_a_ledger_of_every_model_and_a_summary(sweep, tmp_path):
    code, out, err = sweep()
    assert (code, err) == (0, "")  # claims that are refuted are a result
    names = [f"tiny,peak_lr={rate}-seed-{seed}" for rate in ("0.001", "0.002") for seed in range(3)]
    path = tmp_path / "sweep"
    assert sorted(each.stem for each in path.glob("models/*.safetensors")) == names
    assert sorted(each.stem for each in path.glob("ledgers/*.json")) == names
    assert counts(path) == {(name, event): 1 for name in names for event in ("trained", "checked")}
    summary = json.loads((path / "summary.json").read_text())
    assert [summary[name] for name in ("expected", "trained", "done", "failed")] == [6, 6, 6, 0]
    assert [one["n"] for one in summary["claims"][0]["settings"]] == [3, 3]
    lines = out.splitlines()
    assert lines[0] == "models: 6, which is settings: 2 by seeds: 3; done: 0, failed for good: 0, left: 6"
    assert lines[1].startswith("about 0.")
    assert lines[-1] == f"expected 6, done 6, failed 0: {path / 'summary.md'}"
    (run,) = json.loads((path / "cost.json").read_text())["runs"]
    assert [run[name] for name in ("expected", "done", "failed", "trained", "checked", "workers")] == [6, 6, 0, 6, 6, 2]
    assert run["bytes"] == pytest.approx(sum(each.stat().st_size for each in path.rglob("*.*")), rel=0.1)


def test_with_real_work_the_ledgers_are_of_the_claims_and_the_controls_are_there(nopos, real_work, own_cache, tmp_path):
    path = tmp_path / "sweep"
    assert nopos("sweep", "--out", path, "--recipe", "tiny", "--seeds", "5-5", "--kernel", "torch")[0] == 0
    ledger = json.loads((path / "ledgers" / "tiny-seed-5.json").read_text())
    controls = json.loads((path / "controls.json").read_text())
    assert [subject["name"] for subject in ledger["subjects"]] == ["tiny-seed-5"]
    ((size, of_size),) = controls["sizes"].items()
    assert size == "n_layers 2, n_heads 2, d_model 8, d_head 4, d_mlp 12, d_vocab 7, n_ctx 6"
    assert [(one["name"], one["made_for"]) for one in of_size["subjects"]] == [("untrained", size)]
    (claim,) = json.loads((path / "summary.json").read_text())["claims"]
    assert claim["statement"] == "The loss is low."
    assert claim["settings"][0]["refuted"] == 1


def test_the_number_of_workers_changes_no_byte(sweep, tmp_path):
    for workers in (1, 5):
        assert sweep(str(workers), workers=workers)[0] == 0
    first, *others = (files_of(tmp_path / name) for name in "15")
    assert len(first) == 15
    assert others == [first]


def test_a_model_is_that_of_nopos_train(sweep, nopos, tmp_path, own_cache):
    sweep()
    models = tmp_path / "sweep" / "models"
    model, other = (load(models / f"tiny,peak_lr={rate}-seed-1.safetensors") for rate in ("0.001", "0.002"))
    assert nopos("train", "--recipe", "tiny", "--seed", 1, "--kernel", "torch", "--out", tmp_path)[0] == 0
    assert load(tmp_path / "tiny-seed-1.safetensors").sha256 == model.sha256
    assert other.describe().startswith("recipe tiny, but peak_lr 0.002, seed 1")


@pytest.mark.parametrize("most", [2, 4, 7, 11])
def test_a_sweep_that_is_interrupted_anywhere_goes_on_and_ends_the_same(sweep, in_process, monkeypatch, tmp_path, most):
    sweep("whole")
    monkeypatch.setattr(in_process, "most", in_process.done + most)
    output = sweep("stopped")
    assert output[0] == 130
    assert complaint(output) == "nopos: interrupted; nothing unfinished was saved"
    monkeypatch.setattr(in_process, "most", 10**9)
    assert sweep("stopped")[0] == 0
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    assert set(counts(tmp_path / "stopped").values()) == {1}  # nothing was trained twice that was saved


def test_a_whole_sweep_has_nothing_left_to_do(sweep, in_process, tmp_path):
    sweep()
    before, done = files_of(tmp_path / "sweep"), in_process.done
    code, out, _ = sweep()
    assert (code, in_process.done) == (0, done)
    assert "done: 6, failed for good: 0, left: 0" in out
    assert files_of(tmp_path / "sweep") == before
    assert len(json.loads((tmp_path / "sweep" / "cost.json").read_text())["runs"]) == 2


@pytest.mark.parametrize(
    ("damage", "damaged", "again"),
    [
        (lambda weights, ledger: weights.write_bytes(b""), True, {"trained": 2, "checked": 2}),
        (lambda weights, ledger: weights.with_suffix(".json").unlink(), False, {"trained": 2, "checked": 2}),
        (lambda weights, ledger: ledger.write_text("{"), False, {"trained": 1, "checked": 2}),
        (lambda weights, ledger: ledger.unlink(), False, {"trained": 1, "checked": 2}),
    ],
    ids=["weights", "manifest", "torn ledger", "ledger"],
)
def test_what_is_no_longer_whole_is_made_again_and_nothing_else(sweep, tmp_path, damage, damaged, again):
    sweep()
    path, name = tmp_path / "sweep", "tiny,peak_lr=0.001-seed-1"
    before = files_of(path)
    damage(path / "models" / f"{name}.safetensors", path / "ledgers" / f"{name}.json")
    code, out, _ = sweep()
    assert code == 0
    assert ("it is made again" in out) == damaged
    assert files_of(path) == before
    assert {event: n for (model, event), n in counts(path).items() if model == name} == again
    assert all(n == 1 for (model, _), n in counts(path).items() if model != name)


def test_an_index_that_lacks_its_last_lines_is_filled_from_the_files(sweep, in_process, tmp_path):
    sweep()
    path = tmp_path / "sweep"
    before, done, lines = files_of(path), in_process.done, (path / "index.jsonl").read_text().splitlines(keepends=True)
    (path / "index.jsonl").write_text("".join(lines[:3]) + lines[3][:10])  # the last line is torn
    assert sweep()[0] == 0
    assert in_process.done == done
    assert files_of(path) == before
    assert len(counts(path)) == 12
    assert set(counts(path).values()) == {1}


def test_models_that_diverge_are_failed_counted_and_not_tried_again(nopos, in_process, tmp_path):
    arguments = ("sweep", "--out", tmp_path / "s", "--recipe", "tiny", "--seeds", "0-1", "--kernel", "torch",
                 "--grid", "train.peak_lr=1e38,0.001")  # fmt: skip
    code, out, err = nopos(*arguments)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[-1].startswith("expected 4, done 2, failed 2: ")
    first, *_ = [line for line in lines if line.startswith("failed: ")]
    assert first.startswith("failed: tiny,peak_lr=1e+38-seed-0, training: training tiny, seed 0: the l")
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert [one["failed"] for one in summary["settings"]] == [2, 0]
    assert [one["n"] for one in summary["claims"][0]["settings"]] == [2]
    reasons = {event["reason"] for event in index(tmp_path / "s") if event["event"] == "failed"}
    assert {failure["reason"] for failure in summary["failures"]} == {f"training: {reason}" for reason in reasons}
    before, done = files_of(tmp_path / "s"), in_process.done
    assert nopos(*arguments)[0] == 1
    assert in_process.done == done
    assert files_of(tmp_path / "s") == before


def test_what_failed_for_another_reason_is_tried_again(sweep, monkeypatch, tmp_path):
    def dying(name, given, known):
        raise MemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(work, "check_claims", dying)
        code, out, _ = sweep()
    assert code == 1
    assert "done 0, failed 6" in out
    assert "failed: tiny,peak_lr=0.001-seed-0, checking: MemoryError: no memory" in out
    assert sweep()[0] == 0
    assert {event for _, event in counts(tmp_path / "sweep")} == {"trained", "failed", "checked"}
    assert json.loads((tmp_path / "sweep" / "summary.json").read_text())["failures"] == []


def of_at_most(most, how):
    """`work.train`, for which there is no memory, or whose worker fails, when it gets more models than that."""
    real = work.train

    def train(recipe, seeds, device, kernel):
        if len(seeds) <= most:
            return real(recipe, seeds, device, kernel)
        if how == "memory":
            return work.Trained(models=[], seconds=0.1, why_none="no memory")
        raise RuntimeError("no memory")

    return train


@pytest.mark.parametrize("how", ["memory", "error"])
def test_a_group_that_cannot_be_trained_together_is_split_until_it_can(sweep, monkeypatch, tmp_path, how):
    sweep("whole", workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(work, "train", of_at_most(1, how))
        code, out, _ = sweep("split", workers=1)
    assert (code, out.splitlines()[-1].split(":")[0]) == (0, "expected 6, done 6, failed 0")
    assert "groups split: 4" in out
    assert files_of(tmp_path / "split") == files_of(tmp_path / "whole")
    splits = [event for event in index(tmp_path / "split") if event["event"] == "split"]
    found = [(one["model"][-6:], one["members"], one["into"]) for one in splits]
    assert found == [("seed-0", 3, 2), ("seed-0", 2, 1)] * 2
    assert all(one["reason"].endswith("no memory") for one in splits)
    (run,) = json.loads((tmp_path / "split" / "cost.json").read_text())["runs"]
    assert (run["splits"], run["trained"]) == (4, 6)
    assert sweep("split", workers=1)[0] == 0  # an index with splits is read as any other


def test_a_model_for_whose_training_there_was_no_memory_has_failed_and_is_trained_by_the_next_run(sweep, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(work, "train", of_at_most(0, "memory"))
        code, out, _ = sweep()
    assert (code, out.count(", training: no memory")) == (1, 6)
    assert "done 0, failed 6" in out
    assert "done 6, failed 0" in sweep()[1]


def test_of_many_failures_the_first_are_printed(nopos, in_process, tmp_path):
    code, out, _ = nopos("sweep", "--out", tmp_path / "s", "--recipe", "tiny", "--seeds", "0-11", "--kernel", "torch",
                         "--grid", "train.peak_lr=1e38")  # fmt: skip
    assert code == 1
    assert out.count("failed: ") == 10
    assert f"and 2 more, in {tmp_path / 's' / 'index.jsonl'}" in out


def test_a_disk_that_is_full_is_one_line_and_what_was_finished_stays(sweep, monkeypatch, tmp_path):
    real, written = Folder.save, []

    def save(self, model, given):
        if len(written) == 2:
            raise StorageError(f"{self.weights(model)}: cannot be written (No space left on device)")
        written.append(model.name)
        real(self, model, given)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "save", save)
        output = sweep()
    assert output[0] == 2
    assert complaint(output).endswith("cannot be written (No space left on device)")
    assert sweep()[0] == 0
    assert all(counts(tmp_path / "sweep")[name, "trained"] == 1 for name in written)


def test_a_calibration_that_fails_is_one_line(sweep, monkeypatch):
    monkeypatch.setattr(work, "calibrate", lambda *_: 1 / 0)
    output = sweep()
    assert output[0] == 2
    expected = "nopos: the calibration failed: ZeroDivisionError: division by zero; this run made no model"
    assert complaint(output) == expected


OF_TWO_SIZES = ("--grid", "d_mlp=12,10")


def of_size(d_mlp):
    return f"n_layers 2, n_heads 2, d_model 8, d_head 4, d_mlp {d_mlp}, d_vocab 7, n_ctx 6"


def test_a_run_that_has_one_size_left_keeps_the_controls_of_the_others(sweep, in_process, tmp_path):
    assert sweep("whole", *OF_TWO_SIZES)[0] == 0
    assert list(json.loads((tmp_path / "whole" / "controls.json").read_text())["sizes"]) == [of_size(12), of_size(10)]
    before = files_of(tmp_path / "whole")
    for ledger in (tmp_path / "whole" / "ledgers").glob("*d_mlp=10*"):
        ledger.unlink()
    assert "left: 6" in sweep("whole", *OF_TWO_SIZES)[1]
    assert files_of(tmp_path / "whole") == before


def without_controls(*of_d_mlp):
    """An evaluation of controls that some sizes do not have."""

    def evaluate(size, share, shares):
        if size.d_mlp in of_d_mlp:
            raise TrainingError("its training diverged")
        return quick_evaluate(size, share, shares)

    return evaluate


def test_a_size_whose_controls_cannot_be_made_fails_its_models_and_no_other(sweep, in_process, monkeypatch, tmp_path):
    sweep("whole", *OF_TWO_SIZES)
    with monkeypatch.context() as patch:
        patch.setattr(work, "evaluate_controls", without_controls(10))
        for before in (0, 6):
            code, out, err = sweep("s", *OF_TWO_SIZES)
            assert f"done: {before}" in out
            assert (code, err, out.splitlines()[-1].split(":")[0]) == (1, "", "expected 12, done 6, failed 6")
            reason = f"the controls of {of_size(10)} cannot be evaluated: TrainingError: its training diverged"
            assert f"failed: tiny,peak_lr=0.001,d_mlp=10-seed-0, checking: {reason}" in out
    assert not list((tmp_path / "s").glob("models/*d_mlp=10*"))
    assert sweep("s", *OF_TWO_SIZES)[0] == 0  # where they can be made, the models are checked
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")
    assert all(number == 1 for (_, event), number in counts(tmp_path / "s").items() if event == "trained")


def test_the_folder_of_another_sweep_and_a_second_driver_are_one_line(sweep, tmp_path):
    sweep()
    path = tmp_path / "sweep"
    output = sweep("sweep", "--recipe", "sprint")
    assert output[0] == 2
    assert f"{path}: is the folder of another sweep (its setting sprint,peak_lr=0.001 is none" in complaint(output)
    identity = json.loads((path / "sweep.json").read_text())
    asked = {name: identity[name] for name in ("asked", "made_by")}
    with folders.opened(path, asked, command="", environment={}):
        output = sweep()
    assert output[0] == 2
    assert complaint(output) == f"nopos: {path}: another nopos sweep is at work on it; wait for its end"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--recipe", "marathon"], "recipe is 'marathon'; it must be one of notebook, sprint"),
        (["--recipe", "sprint", "--workers", "0"], "workers is 0; it must be an integer of at least 1"),
        (["--recipe", "sprint", "--engine", "dask"], "engine is 'dask'; it must be one of local, ray"),
        (
            ["--recipe", "sprint", "--ray-address", "here:6379"],
            "ray-address is 'here:6379'; it goes with --engine ray, which is missing",
        ),
        (["--recipe", "sprint", "--device", "tpu"], "device is 'tpu'; it must be cpu or cuda"),
        (["--recipe", "sprint", "--kernel", "other"], "kernel is 'other'; it must be one of fused, torch"),
        (["--recipe", "sprint", "--seeds", "5-2"], "seeds is '5-2'; it must be a range such as 0-9"),
        (["--recipe", "sprint", "--grid", "positions=none"], "grid names positions; of the model only sizes may vary"),
        (["--recipe", "sprint", "--grid", "d_model=0"], "the setting sprint,d_model=0 cannot be: d_model is 0"),
        (
            ["--recipe", "sprint", "--grid", "train.lr=1"],
            "grid names 'train.lr', which is no field; it must be one of train.steps",
        ),
        (["--recipe", "sprint", "--grid", "train.steps=0"], "the setting sprint,steps=0 cannot be: steps is 0"),
        (
            ["--recipe", "sprint", "--kernel", "fused", "--grid", "train.precision=full,bfloat16"],
            "kernel is fused, which cannot train here: it is for full precision, and this is bfloat16",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_nothing_is_made(nopos, tmp_path, more, message):
    output = nopos("sweep", "--out", tmp_path / "sweep", "--seeds", "0-1", *more)
    assert output[0] == 2
    assert message in complaint(output)
    assert not (tmp_path / "sweep").exists()


def test_an_engine_that_is_not_installed_and_an_address_that_is_none_are_one_line(nopos, tmp_path, monkeypatch):
    arguments = ("sweep", "--out", tmp_path / "s", "--seeds", "0-1", "--recipe", "sprint", "--engine", "ray")
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    output = nopos(*arguments)
    assert (output[0], complaint(output).startswith("nopos: engine is ray, which is not installed")) == (2, True)
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name)
    output = nopos(*arguments, "--ray-address", "here")
    assert (output[0], complaint(output).startswith("nopos: ray-address is 'here'; it must be")) == (2, True)
    assert not (tmp_path / "s").exists()


def test_on_cuda_the_workers_share_its_memory(sweep, monkeypatch, tmp_path):
    real, asked = work.train, []

    def train(recipe, seeds, device, kernel):
        asked.append((device, len(seeds)))
        return real(recipe, seeds, "cpu", kernel)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(work, "train", train)
    monkeypatch.setattr(trainer, "members_at_once", lambda *_: 4)
    monkeypatch.setattr(software, "made_by", lambda device: {"device": device})
    sweep("two", workers=2)
    assert Counter(asked) == {("cuda", 2): 2, ("cuda", 1): 2}
    asked.clear()
    sweep("one", workers=1)
    assert asked == [("cuda", 3)] * 2


def test_ray_with_cuda_is_one_line_and_trains_on_the_cpu_where_no_device_is_named(nopos, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sweeps.cluster, "require_possible", lambda address: None)
    output = nopos("sweep", "--out", tmp_path / "sweep", "--seeds", "0-1", "--recipe", "sprint", "--engine", "ray",
                   "--device", "cuda")  # fmt: skip
    assert output[0] == 2
    assert complaint(output).startswith("nopos: device is cuda, and Ray's workers train on the cpu; leave out")
    wanted = sweeps.Wanted(out=tmp_path, recipes=["sprint"], seeds=range(1), grid={}, workers=None, device=None,
                           kernel=None, command="", engine="ray", ray_address=None)  # fmt: skip
    assert sweeps._possible(wanted)[2] == "cpu"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_sweep_on_cuda_trains_every_model_there(sweep, tmp_path):
    assert sweep("sweep", "--device", "cuda")[0] == 0
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "sweep" / "models").glob("*.json")]
    assert [manifest["made_with"]["device"] for manifest in manifests] == ["cuda"] * 6


ROOT = Path(__file__).parents[3]


def started(path, workers):
    command = [sys.executable, "-m", "nopos.cli", "sweep", "--out", str(path), "--recipe", "sprint", "--seeds", "0-3",
               "--workers", str(workers)]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_sweep_whose_driver_is_killed_goes_on_and_ends_as_one_that_was_not(tmp_path):
    """Four models of `sprint`, every shipped claim, real processes; the undisturbed sweep has one worker."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    driver = started(killed, workers=2)
    while len((killed / "index.jsonl").read_text().splitlines() if (killed / "index.jsonl").exists() else []) < 3:
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.2)
    workers = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []  # a driver that was killed leaves no worker behind
    saved = {each.name for each in killed.glob("models/*.json")}
    assert saved

    undisturbed = started(whole, workers=1)
    out, _ = undisturbed.communicate()
    assert undisturbed.returncode == 0, out
    again = started(killed, workers=2)
    out, _ = again.communicate()
    assert again.returncode == 0, out
    assert "expected 4, done 4, failed 0" in out
    assert files_of(killed) == files_of(whole)
    assert len(files_of(whole)) == 11
    trained = {f"{model}.json": n for (model, event), n in counts(killed).items() if event == "trained"}
    assert all(trained[name] == 1 for name in saved)
    assert set(trained.values()) == {1}
