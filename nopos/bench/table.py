"""What `nopos bench` measured, as lines that a person reads."""

from __future__ import annotations

from typing import Any


def table(result: dict[str, Any]) -> list[str]:
    """The lines for an object of `nopos.bench.run.measure`."""
    known, peaks = result["environment"], result["peak_flops_per_second"]
    lines = [
        f"{known['processor']}, {known['cpus']} CPUs, device {known['device']}, torch {known['versions']['torch']}, "
        f"{known['threads']} threads, {known['cpu_capability']}, kernel {known['kernel']}",
        f"peak of matrix products: {peaks['full'] / 1e9:.0f} GFLOP/s, in bfloat16 {peaks['bfloat16'] / 1e9:.0f}",
        "",
        f"{'engine':<34}{'batch':>6}{'step':>10}{'tokens/s':>11}{'models/min':>12}{'GFLOP/s':>9}{'of peak':>9}"
        f"{'peak MiB':>10}{'x notebook':>12}",
    ]
    lines += [
        f"{row['name']:<34}{row['batch_size']:>6}{row['step_ms']:>7.2f} ms{row['tokens_per_second']:>11,.0f}"
        f"{row['models_per_minute']:>12.3f}{row['flops_per_second'] / 1e9:>9.0f}{row['share_of_peak']:>8.0%} "
        f"{row['peak_mib']:>9.0f}{row['times_the_notebook']:>12.2f}"
        for row in result["engines"]
    ]
    sprint = result["sprint"]
    reached = sum(run["held_out_loss"] <= sprint["target"] for run in sprint["runs"])
    lines += [
        "",
        f"sprint from {len(sprint['runs'])} fresh seeds: {reached} reached {sprint['target']} nats; median "
        f"{sprint['median_seconds']:.2f} s, {sprint['times_the_notebook']:.0f} times as fast as the notebook's loop",
    ]
    lines += [
        f"  seed {run['seed']}: {run['seconds']:.2f} s, held-out loss {run['held_out_loss']:.6f}"
        for run in sprint["runs"]
    ]
    kernels = any("times_torch_kernel" in row for row in result["growth"])
    lines += [
        "",
        f"{'fast trainer, from batch 64':<34}{'size':>6}{'step':>10}{'tokens/s':>11}{'GFLOP/s':>12}"
        + (f"{'x torch kernel':>16}" if kernels else ""),
    ]
    lines += [
        f"{row['axis']:<34}{row['size']:>6}{row['step_ms']:>7.2f} ms{row['tokens_per_second']:>11,.0f}"
        f"{row['flops_per_second'] / 1e9:>12.0f}" + (f"{row['times_torch_kernel']:>16.2f}" if kernels else "")
        for row in result["growth"]
    ]
    return lines
