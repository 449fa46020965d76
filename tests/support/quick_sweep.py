"""`nopos sweep` for tests of other processes: a recipe `tiny`, and work that takes little time but for training.

python -m tests.support.quick_sweep OPTIONS
"""

from __future__ import annotations

import os
import sys
import time

from nopos import cli
from nopos.claims.ledger import SCHEMA
from nopos.claims.outcome import OnControls
from nopos.model import recipes
from nopos.model.recipes import Recipe, TrainConfig
from nopos.populations import work
from nopos.populations.work import Calibration, Checked, ControlsShare
from nopos.storage import checkpoints, files


def quick_evaluate(size, share, shares):
    return ControlsShare(known=OnControls({}, {}), entries={})


def quick_calibrate(recipes, members, device, kernels, known):
    some = [0.5] * len(recipes)
    return Calibration(train=some, check=some, size=[1000] * len(some))


def quick_check(name, given, known):
    """A ledger of one claim, which follows from the weights."""
    value = checkpoints.deserialised(name, given).parameters["embed.W_E"].mean().item()
    measured = [{"name": "mean", "value": value, "unit": "", "operator": ">", "limit": 0.0}]
    verdict = "holds" if value > 0 else "refuted"
    claim = {"id": "f.py::test_it", "statement": "It is.", "verdict": verdict, "measurements": measured}
    subject = {"name": name, "sha256": files.sha256(given.weights), "claims": [claim]}
    return Checked(ledger={"schema": SCHEMA, "complete": True, "subjects": [subject]}, seconds=0.1)


def slow_check(name, given, known):
    """The same, long enough that something can be killed meanwhile."""
    time.sleep(float(os.environ.get("SECONDS_A_CHECK", "0.5")))
    return quick_check(name, given, known)


def main() -> int:
    from tests.support.micro import MICRO  # here, because pytest loads that module itself

    train = TrainConfig(steps=3, batch_size=4, warmup_steps=1, peak_lr=1e-3, stream="own")
    recipes.RECIPES["tiny"] = Recipe(name="tiny", model=MICRO, train=train)
    work.evaluate_controls, work.calibrate, work.check_claims = quick_evaluate, quick_calibrate, slow_check
    return cli.main(["sweep", "--recipe", "tiny", "--kernel", "torch", *sys.argv[1:]])


if __name__ == "__main__":
    # Its functions go to workers by this name, under which they can be imported there.
    from tests.support import quick_sweep

    sys.exit(quick_sweep.main())
