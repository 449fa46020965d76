"""The notebook's training loop (step 4), line for line, over any module: what correct training means.

It also trains by what the fast trainer does not have: other optimisers of torch.optim, smoothed labels, noise in the
targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from nopos.errors import ConfigError, TrainingError
from nopos.model.config import BOS, ModelConfig
from nopos.model.data import generator, mean_loss, targets, training_batches
from nopos.model.parameters import initial_parameters, trainable
from nopos.model.recipes import TrainConfig
from nopos.training import ensemble
from nopos.training.member import Member

Optimize = Callable[[Iterable[nn.Parameter], TrainConfig], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimize] = {
    "adamw": lambda of, c: torch.optim.AdamW(of, lr=c.peak_lr, betas=c.betas, weight_decay=c.weight_decay),
    "adam": lambda of, c: torch.optim.Adam(of, lr=c.peak_lr, betas=c.betas, weight_decay=c.weight_decay),
    "adamax": lambda of, c: torch.optim.Adamax(of, lr=c.peak_lr, betas=c.betas, weight_decay=c.weight_decay),
    "nadam": lambda of, c: torch.optim.NAdam(of, lr=c.peak_lr, betas=c.betas, weight_decay=c.weight_decay),
    "radam": lambda of, c: torch.optim.RAdam(of, lr=c.peak_lr, betas=c.betas, weight_decay=c.weight_decay),
    "adadelta": lambda of, c: torch.optim.Adadelta(of, lr=c.peak_lr, rho=c.betas[1], weight_decay=c.weight_decay),
    "adafactor": lambda of, c: torch.optim.Adafactor(of, lr=c.peak_lr, weight_decay=c.weight_decay),
    "adagrad": lambda of, c: torch.optim.Adagrad(of, lr=c.peak_lr, weight_decay=c.weight_decay),
    "rmsprop": lambda of, c: torch.optim.RMSprop(
        of, lr=c.peak_lr, alpha=c.betas[1], momentum=c.momentum, weight_decay=c.weight_decay
    ),
    "sgd": lambda of, c: torch.optim.SGD(
        of, lr=c.peak_lr, momentum=c.momentum, nesterov=c.momentum > 0, weight_decay=c.weight_decay
    ),
}
"""Each by torch.optim, with what of the settings it has: rate, betas (the second as `rho` or `alpha`), momentum."""


def train(
    model: nn.Module, config: TrainConfig, batches: Iterable[Int[Tensor, "batch pos"]], *, label: str, seed: int = 0
) -> list[float]:
    """Train the module in place, on the device that it is on.

    Args:
        model: tokens [batch pos] to logits [batch pos d_vocab].
        config: optimiser, schedule, clipping and steps.
        batches: training tokens, at least `config.steps` of them.
        label: what the progress bar calls the run.
        seed: of the noise in the targets.

    Returns:
        The training loss in nats at each step, taken before the step's update.

    Raises:
        ConfigError: the optimiser is Muon, which only the fast trainer has.
        TrainingError: a loss is not finite, or the tokens ran out.
    """
    if config.optimizer not in OPTIMIZERS:
        raise ConfigError(f"optimizer is {config.optimizer}; the reference loop has {', '.join(OPTIMIZERS)}")
    device, rng = next(model.parameters()).device, generator("target noise", seed)
    optimizer = OPTIMIZERS[config.optimizer](model.parameters(), config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, config.learning_rate_factor)
    losses: list[float] = []
    with tqdm(total=config.steps, desc=label, unit="step", disable=None, leave=False) as progress:
        for step, batch in zip(range(config.steps), batches, strict=False):
            tokens = batch.to(device)
            loss = _loss(model(tokens), tokens, config, rng)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise TrainingError(f"{label}: the loss is {losses[-1]} at step {step}; nothing was saved")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            progress.update()
            if step % 20 == 0:
                progress.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    if len(losses) < config.steps:
        raise TrainingError(f"{label}: the tokens ran out after {len(losses)} of {config.steps} steps")
    return losses


class OneModel(nn.Module):
    """The readable engine's model of one as a module, for the loop to train where there is no transformer_lens."""

    def __init__(self, config: ModelConfig, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._config, self._names = config, [name for name in parameters if trainable(name, config)]
        self._values = nn.ParameterList(parameters[name] for name in self._names)

    def named(self) -> dict[str, Tensor]:
        """The parameters that are trained."""
        return dict(zip(self._names, self._values, strict=True))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        stacked = {name: value[None] for name, value in self.named().items()}
        return ensemble.logits(self._config, stacked, tokens[None])[0]


def trained(model: ModelConfig, settings: TrainConfig, seed: int, device: torch.device, *, label: str) -> Member:
    """Train a model of this seed by the loop.

    Args:
        model: what it is.
        settings: how it is trained.
        seed: of its start, its tokens and the noise in its targets.
        device: where it is trained.
        label: what the progress bar calls the run.

    Raises:
        ConfigError: the optimiser is Muon, or the seed is none.
        TrainingError: a loss is not finite.
    """
    start = initial_parameters(model, seed, scale=settings.initial_scale)
    module = OneModel(model, start).to(device)
    losses = train(module, settings, training_batches(model, settings, seed), label=label, seed=seed)
    ended = {name: value.detach().cpu() for name, value in module.named().items()}
    return Member(seed, {name: ended.get(name, start[name]) for name in start}, tuple(losses))


def _loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    config: TrainConfig,
    rng: torch.Generator,
) -> Float[Tensor, ""]:
    """What is trained on: the notebook's loss, unless labels are smoothed or some targets are other tokens."""
    offset, shuffled = config.target_offset, config.shuffled_targets
    if config.label_smoothing == 0 and config.target_noise == 0:
        return mean_loss(logits, tokens, target_offset=offset, shuffled=shuffled)
    wanted = noised(
        targets(tokens, target_offset=offset, shuffled=shuffled), config.target_noise, logits.shape[-1], rng
    )
    predicted = rearrange(logits[:, offset:], "batch predicted d_vocab -> (batch predicted) d_vocab")
    return F.cross_entropy(predicted, wanted.flatten(), label_smoothing=config.label_smoothing)


def noised(
    wanted: Int[Tensor, "batch predicted"], share: float, d_vocab: int, rng: torch.Generator
) -> Int[Tensor, "batch predicted"]:
    """The tokens to predict, about such a share of them replaced by tokens drawn from all but BOS."""
    replaced = torch.rand(wanted.shape, generator=rng) < share
    drawn = torch.randint(BOS + 1, d_vocab, wanted.shape, generator=rng)
    return torch.where(replaced.to(wanted.device), drawn.to(wanted.device), wanted)
