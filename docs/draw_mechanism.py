"""Draw the picture of the mechanism, docs/mechanism.svg, from the reference model.

    pip install -c constraints.txt -e '.[docs]'
    python -m docs.draw_mechanism

Each panel shows one stage of the algorithm by what is measured on the reference model. The file is the same at every
run on one machine: the identifiers in it have a fixed salt, it carries no date, and text is drawn as paths, so that it
looks the same where a font is missing. Its background is white, so that it can be read on a dark page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from nopos.mechanism.count import dilution_of_queries, median_dilution, pattern_of_counts, true_counts
from nopos.mechanism.kernel import NEAR, scores_from_weights
from nopos.mechanism.position_code import PLANE, centred_codes, position_codes, principal_directions, principal_shares
from nopos.methods.activations import activation
from nopos.methods.attention import LATE, Scores, mean_pattern, mean_weight_by_offset
from nopos.methods.attribution import direct_logit_attribution
from nopos.model.hook_points import EMBED, hook_point
from nopos.subjects.controls import reference
from nopos.subjects.subject import Subject

PICTURE = Path(__file__).with_name("mechanism.svg")
WRITERS = {
    "embedding": EMBED,
    "attention 0": hook_point(0, "attn_out"),
    "MLP 0": hook_point(0, "mlp_out"),
    "attention 1": hook_point(1, "attn_out"),
    "MLP 1": hook_point(1, "mlp_out"),
}
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#595959"
"""Readers with any colour vision can distinguish these (Okabe and Ito); marks or labels distinguish the two as well."""
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What the four panels show, in the order of the stages."""

    bos_weight: Values
    """Mean attention of layer 0 to BOS, from position 1 on."""
    bos_by_law: Values
    """The same by the law of dilution."""
    median_a: float
    code: Values
    """[pos direction]: the code of each position from 1 on, along the two directions of its plane."""
    shares: Values
    """Of the code's variance, along these two."""
    scores: Values
    """[query_pos offset]: layer 1's mean scores of late queries less that of their own position, in nats."""
    scores_by_weights: Values
    """[offset]: the same from the weights and the law, in the mean over late queries."""
    weight: Values
    """Layer 1's mean attention to each offset."""
    current: Values
    """What each of WRITERS adds to the logit of the current token, over the mean logit, averaged over positions."""
    previous: Values


def measure(subject: Subject) -> Measured:
    """Everything that is drawn, measured on a subject."""
    a = subject.run(dilution_of_queries)
    codes = subject.run(position_codes)
    scores = subject.run(activation, hook_point=hook_point(1, "attn.attn_scores")).mean(dim=0)
    by_weights = scores_from_weights(subject.folded, pos=subject.tokens.shape[-1])
    return Measured(
        bos_weight=_drawn(subject.run(mean_pattern, layer=0)[1:, 0]),
        bos_by_law=_drawn(pattern_of_counts(a, true_counts(subject.tokens)).mean(dim=(0, 1))[1:, 0]),
        median_a=median_dilution(subject.folded).item(),
        code=_drawn(_facing_right(centred_codes(codes) @ principal_directions(codes)[:PLANE].T)),
        shares=_drawn(principal_shares(codes)[:PLANE]),
        scores=_drawn(_below_own(scores)),
        scores_by_weights=_drawn(_below_own(by_weights).mean(dim=0)),
        weight=_drawn(subject.run(mean_weight_by_offset, layer=1)[: NEAR + 1]),
        current=_added(subject, offset=0),
        previous=_added(subject, offset=1),
    )


def draw(measured: Measured, path: Path) -> None:
    """Write the picture as SVG."""
    with rc_context(
        {
            "svg.hashsalt": "nopos",
            "svg.fonttype": "path",
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "axes.titlesize": 10.5,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    ):
        figure = Figure(figsize=(10, 8.2), facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        axes = figure.subplots(2, 2)
        _count(axes[0, 0], measured)
        _position_code(axes[0, 1], measured)
        _kernel(axes[1, 0], measured)
        _decode(axes[1, 1], measured)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _count(axes: Axes, measured: Measured) -> None:
    position = np.arange(1, len(measured.bos_weight) + 1)
    axes.plot(position, measured.bos_by_law, color=ORANGE, label="a/(a+i), from the weights")
    axes.plot(position, measured.bos_weight, "o", color=BLUE, markersize=3.5, label="measured attention to BOS")
    axes.set(
        title=f"1  Layer 0 counts: after i other tokens\n    BOS gets a/(a+i), with a about {measured.median_a:.1f}",
        xlabel="position i",
        ylabel="share of layer 0's attention",
        ylim=(0, 1),
    )
    axes.legend(loc="upper right")


def _position_code(axes: Axes, measured: Measured) -> None:
    x, y = measured.code.T
    axes.plot(x, y, color=GREY, linewidth=0.8)
    axes.scatter(x, y, c=np.arange(len(x)), cmap="viridis", s=22, zorder=2)
    for position in (1, 2, 3, 5, 10, 15, 20, 30, 49):
        axes.annotate(
            "position 1" if position == 1 else str(position),
            measured.code[position - 1],
            (0, -15 if 5 <= position <= 40 else 7),  # beneath the curve where it bends upwards
            textcoords="offset points",
            ha="center",
            color=GREY,
        )
    first, second = map(_percent, measured.shares)
    axes.set(
        title="2  MLP 0 turns the count into a position code:\n    a smooth curve in a plane",
        xlabel=f"first direction of the plane ({first} of the variance)",
        ylabel=f"second direction ({second})",
    )
    axes.set_aspect("equal", adjustable="datalim")


def _kernel(axes: Axes, measured: Measured) -> None:
    back = np.arange(NEAR + 1)
    axes.plot(back, measured.scores.T, color=BLUE, alpha=0.15, linewidth=1)
    axes.plot([], [], color=BLUE, alpha=0.6, linewidth=1, label="measured, one line for each query")
    axes.plot(
        back,
        measured.scores_by_weights,
        "o--",
        color=ORANGE,
        markersize=4.5,
        label="from the weights, no sequence read",
    )
    for offset, weight in enumerate(measured.weight[:4]):
        axes.annotate(
            _percent(weight),
            (offset, measured.scores_by_weights[offset]),
            (8, 5),
            textcoords="offset points",
        )
    axes.set(
        title="3  Layer 1's scores fall with each position back,\n    alike for all queries: a kernel over distance",
        xlabel="positions back (in %: share of layer 1's attention)",
        ylabel="score, less that of the own position (nats)",
    )
    axes.legend(loc="lower left")


def _decode(axes: Axes, measured: Measured) -> None:
    row = np.arange(len(WRITERS))
    for added, shift, colour, label in (
        (measured.current, -0.2, ORANGE, "current token"),
        (measured.previous, 0.2, BLUE, "previous token (the answer)"),
    ):
        bars = axes.barh(row + shift, added, height=0.38, color=colour, label=label)
        axes.bar_label(bars, fmt=_signed, padding=3, fontsize=9)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(row, WRITERS)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    axes.set(
        title="4  MLP 0 cancels the current token in advance,\n    so that MLP 1 can write the previous one",
        xlabel="direct contribution to the token's logit (logits)",
    )
    axes.legend(loc="upper right", bbox_to_anchor=(1.02, 1.03))


def _signed(value: float) -> str:
    """To one decimal, with a typographic minus, and 0.0 without a sign."""
    return "0.0" if abs(value) < 0.05 else f"{value:+.1f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _added(subject: Subject, *, offset: int) -> Values:
    attribution = subject.run(direct_logit_attribution, offset=offset)
    return _drawn(torch.stack([attribution[name].mean() for name in WRITERS.values()]))


def _below_own(scores: Scores) -> torch.Tensor:
    """[query_pos offset]: late queries' scores by offset, less that of offset 0."""
    by_offset = [scores[0].diagonal(-offset)[LATE - offset :] for offset in range(NEAR + 1)]
    stacked = torch.stack(by_offset, dim=-1)
    return stacked - stacked[:, :1]


def _facing_right(code: torch.Tensor) -> torch.Tensor:
    """The same code with position 1 at the upper right: the signs of principal directions are nobody's choice."""
    return code * torch.where(code[0] < 0, -1.0, 1.0)


def _drawn(values: torch.Tensor) -> Values:
    """Rounded, so that what another machine's rounding changes is not seen in the file."""
    rounded: Values = values.detach().double().numpy().round(4)
    return rounded


if __name__ == "__main__":
    draw(measure(reference()), PICTURE)
