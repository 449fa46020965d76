"""The machine that a speed was measured on: what it is, what it reaches at best, and the memory that was taken."""

from __future__ import annotations

import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from nopos.environment import environment
from nopos.model.config import ModelConfig
from nopos.model.recipes import Precision
from nopos.training import fused
from nopos.training.linear import linear


def facts(device: torch.device) -> dict[str, Any]:
    """What the ledger says of machine and software, and what speed depends on besides."""
    reason = fused.why_not(ModelConfig(), device, "full")
    return {
        **environment(),
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernel": "fused" if reason is None else f"torch ({reason})",
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        described = Path("/proc/cpuinfo").read_text()
        return next(line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def peak_flops_per_second(precision: Precision, device: torch.device) -> float:
    """What the machine reaches at large square products, by the function that training uses."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    size, launches = (8192, 10) if device.type == "cuda" else (1024, 1)
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn((1, size, size), generator=rng).to(device, dtype) for _ in range(2))
    bias = torch.zeros((1, size), dtype=dtype, device=device)
    rates = []
    for _ in range(50):
        finish(device)
        start = time.perf_counter()
        for _ in range(launches):
            linear(left, right, bias)
        finish(device)
        rates.append(2 * size**3 * launches / (time.perf_counter() - start))
    return max(rates)


def peak_memory_mib(device_type: str) -> float:
    """Largest resident memory of this process so far, or on CUDA the most that its tensors took of the device's."""
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    bytes_a_unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_a_unit / 2**20


def finish(device: torch.device) -> None:
    """Wait for what a device was given to do: CUDA works on while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
