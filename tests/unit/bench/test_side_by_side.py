from __future__ import annotations

import os
import signal

from nopos.bench import engines
from nopos.bench.side_by_side import flops_per_token
from nopos.model.config import ModelConfig


def test_a_multiplication_takes_two_operations_forward_and_four_backward():
    """The notebook's model by hand: 2 layers of 4 * 64 * 64 + 2 * 64 * 256, pairs of 2 * 50 * 64, and 64 * 300."""
    assert flops_per_token(ModelConfig()) == 6 * (2 * (49152 + 6400) + 19200)


def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_is_one_line(tiny_bench, nopos, monkeypatch):
    monkeypatch.setattr(engines, "seconds_for", die)
    code, _, err = nopos("bench", "--device", "cpu")
    assert (code, err) == (2, "nopos: an engine's process died; nothing was measured (was memory short?)\n")
