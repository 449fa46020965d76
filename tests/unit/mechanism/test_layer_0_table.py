from __future__ import annotations

import pytest
import torch

from nopos.errors import AnalysisError
from nopos.mechanism.layer_0_table import effect_of_the_table, residual_table
from nopos.model.data import held_out_tokens
from nopos.model.hook_points import hook_point
from nopos.model.transformer import NoPosTransformer
from tests.support.micro import folded_of


@pytest.fixture
def tokens(law_model):
    return held_out_tokens(law_model.config, 8)


def test_where_the_law_is_exact_layer_0_is_its_table(law_model, tokens):
    """Every residual, BOS's included, is the table's entry for its token and position."""
    folded = folded_of(law_model)
    table = residual_table(folded)
    assert table.shape == (7, 26, 8)
    observed = folded.run_with_cache(tokens)[1][hook_point(0, "resid_post")]
    torch.testing.assert_close(observed, table[tokens, torch.arange(26)])
    assert effect_of_the_table(law_model, tokens, folded=folded).kl == pytest.approx(0, abs=1e-6)
    assert not torch.allclose(table[3, 5], table[3, 6])
    assert not torch.allclose(table[3, 5], table[4, 5])


def test_a_table_is_made_for_one_head(micro, noisy):
    with pytest.raises(AnalysisError, match="layer 0 has 2 heads"):
        residual_table(folded_of(NoPosTransformer(micro, noisy(micro, 0))))
