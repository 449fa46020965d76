from __future__ import annotations

from nopos.bench.growth import growing


def test_one_thing_grows_at_a_time():
    base = next(engine for axis, size, engine in growing() if (axis, size) == ("batch", 64))
    for axis, size, engine in growing():
        recipe = engine.recipe
        found = {
            "batch": recipe.train.batch_size,
            "context": recipe.model.n_ctx,
            "width": recipe.model.d_model,
            "heads": recipe.model.n_heads,
            "vocabulary": recipe.model.d_vocab,
            "members": engine.members,
        }
        wanted = {"batch": 64, "context": 50, "width": 64, "heads": 1, "vocabulary": 300, "members": 1, axis: size}
        assert found == wanted
        assert engine.loop == base.loop
