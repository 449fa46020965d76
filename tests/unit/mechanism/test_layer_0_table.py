from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nopos.mechanism.layer_0_table import effect_of_the_table, residual_table
from nopos.model.data import held_out_tokens
from nopos.model.hook_points import hook_point
from tests.support.micro import LAW_CONFIG, folded_of, law_model_of


@pytest.mark.parametrize("n_heads", [1, 2, 3])
def test_where_the_law_is_exact_layer_0_is_its_table(n_heads):
    """Every residual, BOS's included, is the table's entry for its token and position."""
    model = law_model_of(replace(LAW_CONFIG, n_heads=n_heads))
    folded, tokens = folded_of(model), held_out_tokens(model.config, 8)
    table = residual_table(folded)
    assert table.shape == (7, 26, 8)
    observed = folded.run_with_cache(tokens)[1][hook_point(0, "resid_post")]
    torch.testing.assert_close(observed, table[tokens, torch.arange(26)])
    assert effect_of_the_table(model, tokens, folded=folded).logits_changed == pytest.approx(0, abs=1e-6)
    assert not torch.allclose(table[3, 5], table[3, 6])
    assert not torch.allclose(table[3, 5], table[4, 5])
