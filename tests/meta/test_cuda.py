"""What holds of a model that the CPU trained holds of the one that CUDA trains from the same seed."""

from __future__ import annotations

import pytest
import torch

from nopos.claims.outcome import evaluate
from nopos.model.recipes import SPRINT
from nopos.storage.checkpoints import train
from nopos.subjects.shipped import shipped_claims
from nopos.subjects.subject import Subject


def holding(device: str) -> set[str]:
    subject = Subject(device, train(SPRINT, 0, torch.device(device)))
    return {claim.id for claim in shipped_claims() if evaluate(claim, subject).verdict == "holds"}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_model_trained_on_cuda_passes_every_claim_that_the_cpus_passes():
    of_the_cpu = holding("cpu")
    assert len(of_the_cpu) > 40
    assert of_the_cpu - holding("cuda") == set()
