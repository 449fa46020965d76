"""The names of all hook points, as in the notebook: `blocks.1.attn.hook_k` is `hook_point(1, "attn.k")`."""

from __future__ import annotations

from collections.abc import Iterable

EMBED, POS_EMBED = "hook_embed", "hook_pos_embed"
FINAL_SCALE, FINAL_NORMALIZED = "ln_final.hook_scale", "ln_final.hook_normalized"

OF_A_BLOCK = (
    "resid_pre",
    "ln1.scale", "ln1.normalized",
    "attn.q", "attn.k", "attn.v", "attn.attn_scores", "attn.pattern", "attn.z", "attn_out",
    "resid_mid",
    "ln2.scale", "ln2.normalized",
    "mlp.pre", "mlp.post", "mlp_out",
    "resid_post",
)  # fmt: skip
"""The activations of one layer in the order of its forward pass."""


def hook_point(layer: int, activation: str) -> str:
    """The hook point of one of `OF_A_BLOCK` in a layer.

    Raises:
        KeyError: no block has such an activation.
    """
    if activation not in OF_A_BLOCK:
        raise KeyError(f"a block has no activation {activation!r}; it has {', '.join(OF_A_BLOCK)}")
    owner, _, name = activation.rpartition(".")
    return f"blocks.{layer}.{owner + '.' if owner else ''}hook_{name}"


def layer_of(name: str) -> int | None:
    """The layer that a hook point lies in; None before the first layer and after the last."""
    prefix, _, rest = name.partition(".")
    layer = rest.partition(".")[0]
    return int(layer) if prefix == "blocks" and layer.isdecimal() else None


def stop_after(hook_points: Iterable[str]) -> int | None:
    """The layer at which a forward pass may stop that is to reach these hook points; None if all of it is needed."""
    last = 0
    for name in hook_points:
        layer = layer_of(name)
        if layer is None and name not in (EMBED, POS_EMBED):
            return None
        last = max(last, 0 if layer is None else layer + 1)
    return last
