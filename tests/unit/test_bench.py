from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from nopos import bench
from nopos.config import NOTEBOOK, ModelConfig

CPU = torch.device("cpu")


@pytest.fixture
def tiny_bench(monkeypatch, micro, tiny_recipe):
    """All that `nopos bench` does, with models that train in a blink."""
    tiny = bench.Engine("tiny", tiny_recipe, "fast")
    rough = replace(tiny_recipe, train=replace(tiny_recipe.train, precision="bfloat16"))
    every = [tiny, replace(tiny, name="three", members=3), bench.Engine("rough", rough, "fast")]
    monkeypatch.setattr(bench, "engines", lambda _: every)
    monkeypatch.setattr(bench, "ROUNDS", 2)
    monkeypatch.setattr(bench, "SECONDS_A_TURN", 0.02)
    monkeypatch.setattr(bench, "SPRINT", tiny_recipe)
    monkeypatch.setattr(bench, "growing", lambda: [("batch", 2, tiny), ("width", 16, tiny)])


def test_a_multiplication_takes_two_operations_forward_and_four_backward():
    """The notebook's model by hand: 2 layers of 4 * 64 * 64 + 2 * 64 * 256, pairs of 2 * 50 * 64, and 64 * 300."""
    assert bench.flops_per_token(ModelConfig()) == 6 * (2 * (49152 + 6400) + 19200)


def test_the_notebooks_loop_comes_first_and_every_loop_is_there():
    every = bench.engines(CPU)
    assert (every[0].loop, every[0].recipe) == ("bridge", NOTEBOOK)
    assert {engine.loop for engine in every} == {"bridge", "reference", "fast"}
    assert [engine.members for engine in every if engine.recipe.name == "sprint"] == [1, 4, 16]
    on_cuda = bench.engines(torch.device("cuda"))
    assert [engine.members for engine in on_cuda if engine.recipe.name == "sprint"] == [1, 4, 16, 64, 256]


@pytest.mark.parametrize("loop", ["bridge", "reference", "fast"])
def test_every_loop_runs(loop):
    engine = next(engine for engine in bench.engines(CPU) if engine.loop == loop)
    assert bench.seconds_for(replace(engine, recipe=small_batch(engine.recipe)), 2, "cpu") > 0


def small_batch(recipe):
    return replace(recipe, train=replace(recipe.train, batch_size=2))


def test_the_bridge_is_the_notebooks_model_but_for_the_bias_that_it_lacks():
    parameters = dict(bench.bridge(ModelConfig(), CPU).named_parameters())
    assert sum(value.numel() for value in parameters.values()) == 141_696  # ours has 141,996: a b_U of 300 more
    (W_pos,) = (value for name, value in parameters.items() if name.startswith("pos."))
    assert not W_pos.requires_grad
    assert (W_pos == 0).all()


def test_sprints_are_judged_by_their_held_out_loss(tiny_bench):
    runs = bench.sprints(CPU, [3, 4])
    assert [run["seed"] for run in runs] == [3, 4]
    assert all(run["seconds"] > 0 and 1.5 < run["held_out_loss"] < 2.5 for run in runs)


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json_whose_rates_follow_from_the_times(tiny_bench, nopos, tmp_path):
    code, out, err = nopos("bench", "--device", "cpu", "--json", tmp_path / "bench.json")
    assert (code, err) == (0, "")
    for words in ("peak of matrix", "tiny", "three", "rough", "10 fresh seeds: 0 reached 0.006", "seed 9:", "width"):
        assert words in out
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result.keys() == {"schema", "command", "environment", "peak_flops_per_second", "engines", "sprint", "growth"}
    assert result["environment"]["threads"] == torch.get_num_threads()
    assert [row["size"] for row in result["growth"]] == [2, 16]
    assert len(result["sprint"]["runs"]) == 10

    first, three, rough = result["engines"]
    per_token = bench.flops_per_token(bench.engines(CPU)[0].recipe.model)
    for row in result["engines"]:
        assert row["tokens_per_second"] == pytest.approx(row["members"] * 4 * 6 / (row["step_ms"] / 1e3))
        assert row["models_per_minute"] == pytest.approx(60 * row["members"] / (3 * row["step_ms"] / 1e3))
        assert row["flops_per_second"] == pytest.approx(row["tokens_per_second"] * per_token)
        assert row["times_the_notebook"] == pytest.approx(row["models_per_minute"] / first["models_per_minute"])
        assert row["peak_mib"] > 50  # Python and torch alone take more
    assert three["members"] == 3
    peaks = result["peak_flops_per_second"]
    assert rough["share_of_peak"] == pytest.approx(rough["flops_per_second"] / peaks["bfloat16"])
    assert first["share_of_peak"] == pytest.approx(first["flops_per_second"] / peaks["full"])


def test_a_file_that_is_no_benchmark_is_not_written_over(tiny_bench, nopos, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "measure", None)  # calling it would fail
    (tmp_path / "notes.json").write_text("{}")
    code, _, err = nopos("bench", "--device", "cpu", "--json", str(tmp_path / "notes.json"))
    assert code == 2
    assert (
        err
        == f"nopos: {tmp_path / 'notes.json'}: exists and is not a benchmark; give another name, or remove it first\n"
    )


def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_one_line(tiny_bench, nopos, monkeypatch):
    monkeypatch.setattr(bench, "seconds_for", die)
    code, _, err = nopos("bench", "--device", "cpu")
    assert (code, err) == (2, "nopos: an engine's process died; nothing was measured (was memory short?)\n")


def test_all_members_of_a_population_are_trained(monkeypatch, tiny_recipe):
    trained = []
    monkeypatch.setattr(bench.trainer, "members_at_once", lambda *_: 2)
    monkeypatch.setattr(bench.trainer, "train", lambda model, train, seeds, *_, **__: trained.append(list(seeds)))
    bench.seconds_for(bench.Engine("five", tiny_recipe, "fast", 5), 3, "cpu")
    assert trained == [[0, 1], [2, 3], [4]]


def test_one_thing_grows_at_a_time():
    base = next(engine for axis, size, engine in bench.growing() if (axis, size) == ("batch", 64))
    for axis, size, engine in bench.growing():
        recipe = engine.recipe
        found = {
            "batch": recipe.train.batch_size,
            "context": recipe.model.n_ctx,
            "width": recipe.model.d_model,
            "members": engine.members,
        }
        wanted = {"batch": 64, "context": 50, "width": 64, "members": 1, axis: size}
        assert found == wanted
        assert engine.loop == base.loop
