"""What a worker process does first, whichever engine it belongs to.

How many threads there may be is read by torch and numpy when they are loaded, so this module imports neither.
"""

from __future__ import annotations

import os


def variables(threads: int) -> dict[str, str]:
    """What the environment must have before torch and numpy are loaded."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",  # numpy's sums depend on how many there are
    }


def prepare(threads: int) -> None:
    """Have so many threads, and load torch."""
    os.environ.update(variables(threads))
    import torch

    torch.set_num_threads(threads)
