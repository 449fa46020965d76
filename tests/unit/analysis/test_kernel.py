from __future__ import annotations

import pytest
import torch

from fixtures.micro import twin_of
from nopos.analysis import kernel
from nopos.analysis.codes import RESIDUAL, residual_by_law
from nopos.analysis.kernel import (
    LATE,
    SHIFTS,
    MovedScores,
    Tilts,
    effect_of_scores_by_law,
    match_with_own_token,
    moved_scores,
    near,
    score_shares,
    score_steps,
    scores_by_law,
    share_explained_by_law,
    shares,
    spread,
    tilts,
)
from nopos.analysis.metrics import per_token_kl
from nopos.analysis.patching import mean_code
from nopos.data import held_out_tokens
from nopos.errors import AnalysisError
from nopos.model import NoPosTransformer

Q, K, SCORES = (f"blocks.1.attn.hook_{name}" for name in ("q", "k", "attn_scores"))


@pytest.fixture
def every_token(lawful):
    """Each token in each slot after BOS exactly once."""
    tokens = 1 + (torch.arange(6)[:, None] + torch.arange(26)[None]) % 6
    tokens[:, 0] = 0
    return tokens


@pytest.fixture
def tokens(lawful):
    return held_out_tokens(lawful.config, 8)


def with_parameters(model, **changed):
    parameters = model.parameter_tensors()
    for name, value in changed.items():
        parameters[f"blocks.1.attn.{name}"] = torch.full_like(parameters[f"blocks.1.attn.{name}"], value)
    return NoPosTransformer(model.config, parameters)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_near_scores_are_the_offsets_of_late_queries_less_their_mean():
    scores = drawn(2, 1, 14, 14)
    found = near(scores)
    assert found.shape == (2, 1, 4, 6)
    row = torch.stack([scores[1, 0, 12, 12 - offset] for offset in range(6)])
    torch.testing.assert_close(found[1, 0, 2], row - row.mean())
    torch.testing.assert_close(near(scores, first=1)[1, 0, 2], row[1:] - row[1:].mean())


def test_shares_by_what_scores_are_made_of():
    distance = drawn(1, 1, 1, 6).expand(400, 1, 30, 6)
    place = drawn(1, 1, 30, 6, seed=1).expand(400, 1, 30, 6)
    content = drawn(400, 1, 30, 6, seed=2)
    centred = [part - part.mean(dim=-1, keepdim=True) for part in (distance, place, content)]
    variances = [part.pow(2).mean() for part in centred]
    only_distance, only_content = shares(centred[0]), shares(centred[2])
    assert only_distance.position == pytest.approx(1)
    assert only_distance.distance == pytest.approx(1)
    assert only_content.position == pytest.approx(0, abs=0.01)
    mixed = shares(centred[0] + centred[1] + centred[2])
    assert mixed.position == pytest.approx(((variances[0] + variances[1]) / sum(variances)).item(), abs=0.05)
    assert mixed.distance == pytest.approx((variances[0] / (variances[0] + variances[1])).item(), abs=0.1)
    nothing = shares(torch.zeros(2, 1, 3, 6))
    assert (nothing.position, nothing.distance) == (0, 0)


def test_score_shares_are_of_layer_1(lawful, tokens):
    assert score_shares(lawful, tokens) == shares(near(lawful.run_with_cache(tokens)[1][SCORES]))


def test_steps_by_hand(lawful, tokens):
    steps = score_steps(lawful, tokens)
    cache = lawful.run_with_cache(tokens)[1]
    scores = cache[SCORES][:, 0].mean(dim=0)
    keys = (cache[K][:, :, 0] @ cache[Q][:, LATE:, 0].mean(dim=(0, 1))).mean(dim=0) / 2  # d_head is 4
    for number, query in enumerate(range(LATE, 26)):
        expected = (scores[query, query - 1] - scores[query, query - 5]) / 4
        torch.testing.assert_close(steps.of_scores[number], expected, atol=1e-5, rtol=1e-4)
        expected = (keys[query - 1] - keys[query - 5]) / 4
        torch.testing.assert_close(steps.of_keys[number], expected, atol=1e-5, rtol=1e-4)
        row = torch.arange(query - 5, query)
        by, of = keys[row] - keys[row].mean(), scores[query, row] - scores[query, row].mean()
        torch.testing.assert_close(steps.gain[number], (by * of).sum() / (by * by).sum(), atol=1e-4, rtol=1e-3)


def test_one_query_for_all_has_a_gain_of_one(lawful, tokens):
    """Without W_Q every query is b_Q."""
    steps = score_steps(with_parameters(lawful, W_Q=0.0), tokens)
    torch.testing.assert_close(steps.of_scores, steps.of_keys, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(steps.gain, torch.ones(16), atol=1e-4, rtol=0)


def test_a_spread_by_hand():
    assert spread(torch.tensor([1.0, 2.0, 3.0])) == 1
    assert spread(torch.tensor([-1.0, -2.0, -3.0])) == 1
    assert spread(torch.tensor([2.0, 2.0])) == 0
    assert spread(torch.zeros(3)) == 0


def test_a_model_without_scores_has_no_steps_and_its_gain_does_not_grow(lawful, tokens):
    steps = score_steps(with_parameters(lawful, W_K=0.0, b_K=0.0), tokens)
    assert spread(steps.of_scores) == spread(steps.of_keys) == steps.growth == 0


def test_the_match_is_the_covariance_of_query_and_key_in_one_slot(lawful, tokens):
    cache = lawful.run_with_cache(tokens)[1]
    q, k = cache[Q][:, :, 0], cache[K][:, :, 0]

    def covariance(query, key):
        return ((q[:, query] * k[:, key]).sum(-1).mean() - q[:, query].mean(0) @ k[:, key].mean(0)) / 2

    slots = range(LATE, 26)
    own = sum(covariance(i, i) for i in slots) / len(slots)
    others = sum(covariance(i, i - offset) for i in slots for offset in range(1, 6)) / (5 * len(slots))
    assert match_with_own_token(lawful, tokens) == pytest.approx((own - others).item(), rel=1e-3, abs=1e-5)
    assert match_with_own_token(with_parameters(lawful, W_Q=0.0), tokens) == pytest.approx(0, abs=1e-5)


def test_where_the_law_is_exact_the_scores_by_law_are_the_mean_scores(lawful, every_token):
    twin = twin_of(lawful)
    cache = twin.run_with_cache(every_token)[1]
    q, k = cache[Q][:, :, 0], cache[K][:, :, 0]
    expected = q.mean(0) @ k.mean(0).T / 2
    own = cache[SCORES][:, 0].mean(dim=0).diagonal()
    permitted = torch.ones(26, 26).tril().bool()
    found = scores_by_law(twin, pos=26, own_token=False)[0]
    torch.testing.assert_close(found[1:, 1:][permitted[1:, 1:]], expected[1:, 1:][permitted[1:, 1:]])
    torch.testing.assert_close(found[1:, 0], expected[1:, 0])
    assert (found[~permitted] == -torch.inf).all()
    with_own = scores_by_law(twin, pos=26)[0]
    torch.testing.assert_close(with_own.diagonal()[1:], own[1:])
    torch.testing.assert_close(with_own.tril(-1)[permitted], found.tril(-1)[permitted])


def test_scores_by_law_are_put_in_the_place_of_scores(lawful, tokens):
    twin = twin_of(lawful)
    for own_token in (True, False):
        scores = scores_by_law(twin, pos=26, own_token=own_token).float()
        edited = lawful.run_with_hooks(tokens, fwd_hooks=[(SCORES, lambda old, hook, new=scores: new.expand_as(old))])
        expected = per_token_kl(lawful(tokens), edited).mean().item()
        found = effect_of_scores_by_law(lawful, tokens, twin=twin, own_token=own_token).kl
        assert found == pytest.approx(expected, rel=1e-4)
        assert expected > 1e-6


def test_the_law_explains_all_where_it_is_exact_and_little_of_another_models_scores(lawful, every_token):
    """Without W_Q query and key match in no slot, so nothing is left but the products of means."""
    plain = with_parameters(lawful, W_Q=0.0)
    assert share_explained_by_law(plain, every_token, twin=twin_of(plain)) == pytest.approx(1, abs=1e-4)
    backwards = with_parameters(lawful, W_Q=0.0)
    with torch.no_grad():
        backwards.block(1).attn.b_Q.neg_()
    assert share_explained_by_law(plain, every_token, twin=twin_of(backwards)) == 0


def test_moved_scores_by_hand(lawful, tokens):
    """With 26 slots two are moved, 10 and 15, and each is asked by the query 7 later."""
    twin = twin_of(lawful)
    moved = moved_scores(lawful, tokens, other_tokens=tokens, twin=twin)
    slots = [10, 15]
    assert moved.said.shape == moved.found.shape == moved.random.shape == (1, len(slots) * len(SHIFTS))
    lawful_scores, codes = scores_by_law(twin, pos=26)[0], mean_code(lawful, tokens, hook_point=RESIDUAL)
    added = torch.zeros_like(codes)
    for slot in slots:
        added[slot] = codes[slot + SHIFTS[1]] - codes[slot]
    before = lawful.run_with_cache(tokens)[1][SCORES]
    with lawful.hooks([(RESIDUAL, lambda residual, hook: residual + added)]):
        after = lawful.run_with_cache(tokens)[1][SCORES]
    for number, slot in enumerate(slots):
        said = lawful_scores[slot + 7, slot + SHIFTS[1]] - lawful_scores[slot + 7, slot]
        assert moved.said[0, len(slots) + number].item() == pytest.approx(said.item(), rel=1e-4)
        change = (after - before)[:, 0, slot + 7, slot].mean().item()
        assert moved.found[0, len(slots) + number].item() == pytest.approx(change, rel=1e-3, abs=1e-5)
    assert not torch.allclose(moved.found, moved.random)


def test_slopes_by_hand():
    moved = MovedScores(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 4.0]]), torch.tensor([[2.0, -1.0]]))
    assert moved.slope(moved.found) == 2
    assert moved.slope(moved.random) == 0
    assert moved.explained == 1 - 5 / 20


def test_tilts_by_hand(lawful, tokens):
    other_tokens = held_out_tokens(lawful.config, 8, stream=1)
    name = "blocks.1.attn.hook_pattern"
    mean = lawful.run_with_cache(other_tokens)[1][name].mean(dim=0)
    own = lawful.run_with_cache(tokens)[1][name]
    edited = lawful.run_with_hooks(tokens, fwd_hooks=[(name, lambda pattern, hook: mean.expand_as(pattern))])
    plain = lawful(tokens)
    found = tilts(lawful, tokens, other_tokens=other_tokens)
    assert found.harm.shape == found.tilt.shape == (8, 24)
    for batch in (0, 5):
        for slot in range(2, 26):
            answer = tokens[batch, slot - 1]
            harm = edited[batch, slot].log_softmax(-1)[answer] - plain[batch, slot].log_softmax(-1)[answer]
            row, usual = own[batch, 0, slot], mean[0, slot]
            tilt = (row[slot - 1] / row[slot - 2]).log() - (usual[slot - 1] / usual[slot - 2]).log()
            torch.testing.assert_close(found.harm[batch, slot - 2], harm, atol=1e-5, rtol=1e-3)
            torch.testing.assert_close(found.tilt[batch, slot - 2], tilt, atol=1e-5, rtol=1e-3)


def test_the_share_of_harm_by_hand():
    """The two answers that are tilted most from the previous token bear three of the four nats of harm."""
    harmed = Tilts(harm=torch.tensor([[2.0, 1.5, 1.0, -0.5]]), tilt=torch.tensor([[-3.0, 2.0, -1.0, 5.0]]))
    assert harmed.share_of_harm_tilted_away == 0.75
    assert Tilts(harm=torch.zeros(1, 4), tilt=torch.zeros(1, 4)).share_of_harm_tilted_away == 0


def test_where_content_does_not_reach_the_scores_nothing_is_tilted(lawful, tokens):
    plain = with_parameters(lawful, W_Q=0.0, b_Q=0.0)
    assert tilts(plain, tokens, other_tokens=tokens).tilt.abs().max() < 1e-5


def test_random_moves_are_of_the_norm_of_those_they_stand_for(lawful, tokens):
    norms = []
    real = kernel.activation_with

    def recording(model, given, hook_point, edits):
        residual = torch.zeros(1, given.shape[1], 8)
        norms.append(edits[RESIDUAL](residual)[0].norm(dim=-1))
        return real(model, given, hook_point, edits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "activation_with", recording)
        moved_scores(lawful, tokens, other_tokens=tokens, twin=twin_of(lawful))
    assert len(norms) == 2 * len(SHIFTS)
    for move, noise in zip(norms[::2], norms[1::2], strict=True):
        torch.testing.assert_close(move, noise)
        assert (move > 0).sum() == 2
    assert SHIFTS == (-6, -3, 3, 6)


@pytest.mark.parametrize("ask", [score_shares, score_steps, match_with_own_token])
def test_sequences_without_late_queries_are_one_clear_line(lawful, tokens, ask):
    with pytest.raises(AnalysisError, match="sequences have 10 slots; this analysis needs at least 11"):
        ask(lawful, tokens[:, :10])


def test_sequences_too_short_for_a_move_are_one_clear_line(lawful, tokens):
    with pytest.raises(AnalysisError, match="sequences have 17 slots; this analysis needs at least 18"):
        moved_scores(lawful, tokens[:, :17], other_tokens=tokens[:, :17], twin=twin_of(lawful))


def test_the_law_is_asked_for_as_many_slots_as_there_are(lawful, tokens):
    short = tokens[:, :20]
    twin = twin_of(lawful)
    assert effect_of_scores_by_law(lawful, short, twin=twin).kl > 0
    assert 0 <= share_explained_by_law(lawful, short, twin=twin) <= 1


def test_the_table_of_layer_0_is_what_scores_by_law_read(lawful):
    """Scores of BOS as a key are those of its one entry."""
    twin = twin_of(lawful)
    table, attention = residual_by_law(twin), twin.block(1).attn
    normalized = twin.block(1).ln1(table)
    q = (normalized[1:] @ attention.W_Q[0] + attention.b_Q[0]).mean(0)
    k = normalized[0, 0] @ attention.W_K[0] + attention.b_K[0]
    torch.testing.assert_close(scores_by_law(twin, pos=26)[0, 1:, 0], (q @ k / 2)[1:])
