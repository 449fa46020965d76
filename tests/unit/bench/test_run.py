from __future__ import annotations

import json

import pytest
import torch

from nopos.bench import engines, run
from nopos.bench.side_by_side import flops_per_token

CPU = torch.device("cpu")


def test_sprints_are_judged_by_their_held_out_loss(tiny_bench):
    runs = run.sprints(CPU, [3, 4])
    assert [found["seed"] for found in runs] == [3, 4]
    assert all(found["seconds"] > 0 and 1.5 < found["held_out_loss"] < 2.5 for found in runs)


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
    per_token = flops_per_token(engines.engines(CPU)[0].recipe.model)
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


def test_a_file_that_is_no_benchmark_is_not_written_over(nopos, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "measure", None)  # calling it would fail
    (tmp_path / "notes.json").write_text("{}")
    code, _, err = nopos("bench", "--device", "cpu", "--json", str(tmp_path / "notes.json"))
    assert code == 2
    assert (
        err
        == f"nopos: {tmp_path / 'notes.json'}: exists and is not a benchmark; give another name, or remove it first\n"
    )
