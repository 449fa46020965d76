from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import sys
from nopos.populations import on_ray, worker
print(sorted({"torch", "numpy", "ray"} & set(sys.modules)))
worker.prepare(3)
import os, torch
print(os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"], torch.get_num_threads())
"""


def test_threads_are_set_before_torch_is_loaded_whatever_is_inherited():
    inherited = {**os.environ, "OMP_NUM_THREADS": "7", "OPENBLAS_NUM_THREADS": "7"}
    out = subprocess.run([sys.executable, "-c", CODE], env=inherited, capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["[]", "3 1 3"]
