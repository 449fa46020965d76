"""Train the committed models again: `python train.py`."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from sequences import ONE_PERIOD
from training import Recipe, train

WEIGHTS = Path(__file__).with_name("weights")
RECIPES = {
    "induction": Recipe(seed=0),
    "one_layer": Recipe(seed=0, n_layers=1),
    "fixed_lag": Recipe(seed=0, periods=ONE_PERIOD, steps=500, with_silent_last_layer=True),
}


def main() -> None:
    """Train and keep each."""
    torch.set_num_threads(1)  # the number of threads changes the last bits of the weights
    WEIGHTS.mkdir(exist_ok=True)
    for name, recipe in RECIPES.items():
        start = time.perf_counter()
        model = train(recipe, partial(print, f"{name:9}", flush=True))
        save_file(model.state_dict(), WEIGHTS / f"{name}.safetensors")
        print(f"{name:9} {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
