from __future__ import annotations

import pytest
import torch

from nopos.model.data import held_out_tokens, mean_loss
from nopos.model.recipes import NOTEBOOK, TrainConfig
from nopos.subjects.task import Task


def test_a_task_follows_from_the_training_and_is_the_notebooks_where_that_is_not_known():
    assert Task.of(None) == Task.of(NOTEBOOK.train) == Task()
    assert Task() == Task(target_offset=1, incl_bos_token=True, shuffled_targets=False, certain=True)
    other = TrainConfig(target_offset=3, incl_bos_token=False, shuffled_targets=True)
    assert Task.of(other) == Task(target_offset=3, incl_bos_token=False, shuffled_targets=True)


@pytest.mark.parametrize("unsure", [{"label_smoothing": 0.1}, {"target_noise": 0.1}], ids=str)
def test_what_is_asked_for_is_not_certain_where_labels_are_smoothed_or_targets_noised(unsure):
    assert Task.of(TrainConfig(**unsure)) == Task(certain=False)


def test_its_tokens_are_held_out_and_begin_with_BOS_where_the_training_did(micro):
    assert torch.equal(Task().held_out_tokens(micro, 5), held_out_tokens(micro, 5))
    assert torch.equal(Task().held_out_tokens(micro, 5, stream=1), held_out_tokens(micro, 5, stream=1))
    without = Task(incl_bos_token=False).held_out_tokens(micro, 50)
    assert torch.equal(without, held_out_tokens(micro, 50, incl_bos_token=False))
    assert (without > 0).all()


def answering(answers, d_vocab=9):
    """Logits that are sure of these tokens [batch pos]."""
    return 50 * torch.nn.functional.one_hot(answers, d_vocab).float()


TOKENS = torch.tensor([[0, 1, 2, 3], [0, 5, 6, 7]])


@pytest.mark.parametrize(
    ("task", "answers"),
    [
        (Task(), [[8, 0, 1, 2], [8, 0, 5, 6]]),
        (Task(target_offset=2), [[8, 8, 0, 1], [8, 8, 0, 5]]),
        (Task(shuffled_targets=True), [[8, 0, 5, 6], [8, 0, 1, 2]]),
    ],
    ids=["previous", "two back", "shuffled"],
)
def test_right_answers_cost_nothing_and_those_of_another_task_do(task, answers):
    right = answering(torch.tensor(answers))
    assert task.loss(right, TOKENS) == pytest.approx(0, abs=1e-6)
    assert task.accuracy(right, TOKENS) == 1
    for other in (Task(), Task(target_offset=2), Task(shuffled_targets=True)):
        if other != task:
            assert other.loss(right, TOKENS) > 1
            assert other.accuracy(right, TOKENS) < 1


def test_the_loss_is_the_mean_loss_of_what_is_to_be_predicted(micro):
    tokens = held_out_tokens(micro, 5)
    logits = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0))
    assert Task(target_offset=2).loss(logits, tokens) == mean_loss(logits, tokens, target_offset=2).item()
