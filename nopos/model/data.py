"""Token streams and the loss (notebook, step 3). Nothing here reads or moves torch's global random state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nopos.model.config import BOS, ModelConfig, require_seed
from nopos.model.recipes import TrainConfig

NOTEBOOK_STREAM_SEED = 123
HELD_OUT_SEQUENCES = 256
"""So many sequences a held-out loss is measured on."""


def generator(purpose: str, seed: int) -> torch.Generator:
    """A CPU generator of its own for each purpose, so that weights and tokens of one seed share no draws.

    torch's CPU engine reads 32 bits of a seed, so that is what the hash gives it.

    Raises:
        ConfigError: the seed is not an integer from 0 to 2^63 - 1.
    """
    require_seed(seed)
    digest = hashlib.sha256(f"nopos {purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def token_batches(
    config: ModelConfig, batch_size: int, rng: torch.Generator, *, incl_bos_token: bool = True
) -> Iterator[Int[Tensor, "batch pos"]]:
    """Endless batches of uniform tokens from 1 to d_vocab - 1, position 0 being BOS unless it is left out."""
    while True:
        tokens = torch.randint(1, config.d_vocab, (batch_size, config.n_ctx), generator=rng)
        if incl_bos_token:
            tokens[:, 0] = BOS
        yield tokens


def notebook_batches(
    config: ModelConfig, batch_size: int, *, incl_bos_token: bool = True
) -> Iterator[Int[Tensor, "batch pos"]]:
    """The notebook's own stream: the draws that follow `torch.manual_seed(123)`, from a generator of our own."""
    rng = torch.Generator().manual_seed(NOTEBOOK_STREAM_SEED)
    return token_batches(config, batch_size, rng, incl_bos_token=incl_bos_token)


def training_batches(model: ModelConfig, train: TrainConfig, seed: int) -> Iterator[Int[Tensor, "batch pos"]]:
    """The tokens that a model of this seed is trained on."""
    if train.stream == "notebook":
        return notebook_batches(model, train.batch_size, incl_bos_token=train.incl_bos_token)
    rng = generator("training tokens", seed)
    return token_batches(model, train.batch_size, rng, incl_bos_token=train.incl_bos_token)


def held_out_tokens(
    config: ModelConfig, batch_size: int, *, stream: int = 0, incl_bos_token: bool = True
) -> Int[Tensor, "batch pos"]:
    """Tokens that no training stream holds. The notebook evaluates on its training tokens instead (slip 1)."""
    rng = generator("held-out tokens", stream)
    return next(token_batches(config, batch_size, rng, incl_bos_token=incl_bos_token))


def targets(
    tokens: Int[Tensor, "*model batch pos"], *, target_offset: int = 1, shuffled: bool = False
) -> Int[Tensor, "*model batch predicted"]:
    """What positions `target_offset` and later are to predict: the token so many positions back.

    Shuffled, each sequence is asked for the tokens of the one before it in the batch, of which it knows nothing.
    """
    own = tokens[..., :-target_offset]
    return own.roll(1, dims=-2) if shuffled else own


def per_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    *,
    target_offset: int = 1,
    shuffled: bool = False,
) -> Float[Tensor, "batch predicted"]:
    """Negative log-probability in nats of `targets`."""
    wanted = targets(tokens, target_offset=target_offset, shuffled=shuffled)
    return surprise(logits[:, target_offset:].log_softmax(dim=-1), wanted)


def surprise(
    log_probs: Float[Tensor, "batch predicted d_vocab"], wanted: Int[Tensor, "batch predicted"]
) -> Float[Tensor, "batch predicted"]:
    """Negative log-probability in nats of the wanted tokens."""
    return -log_probs.gather(dim=-1, index=wanted[..., None])[..., 0]


def mean_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    *,
    target_offset: int = 1,
    shuffled: bool = False,
) -> Float[Tensor, ""]:
    """Mean of `per_token_loss`, in nats: the notebook's `loss_fn`."""
    return per_token_loss(logits, tokens, target_offset=target_offset, shuffled=shuffled).mean()
