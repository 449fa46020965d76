from __future__ import annotations

from nopos.populations import software
from nopos.training import compiled


def test_what_a_worker_must_have_is_the_identity_of_a_sweep_and_with_the_fused_kernel_its_library(monkeypatch):
    identity = software.made_by("cpu")
    assert {"nopos", "torch", "python", "claims", "numpy", "scipy", "transformer_lens"} <= set(identity)
    assert software.of_worker("cpu", fused=False) == identity
    monkeypatch.setattr(compiled, "loaded", lambda: "no compiler")
    assert software.of_worker("cpu", fused=True) == {**identity, "kernel": "no compiler"}
