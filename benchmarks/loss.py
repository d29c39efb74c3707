"""Measure the loss and its gradient: time, extra memory and share of peak, against the published code in PyTorch.

python -m benchmarks.loss --out=DIR
python -m benchmarks.loss --rows=1024,8192 --methods=torch,symmetric

Methods: `torch`, the dense matrix in eager PyTorch as in SupContrast; `dense`, the whole matrix in one block;
`blocks`, 256 anchors at a time against all rows; `symmetric`, each block for the rows of both its sides; `ring`, blocks
with rows that travel around all devices (a CPU acts as two).

Each measurement is a separate process; extra memory is the rise of its peak over the memory before the first call, or
on an accelerator what the compiled program needs beside its input. The peak is that of a float32 matrix
product in the same process; the work is counted as 3 x 2 n^2 d operations.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from awcl_jax.runtime import figures
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import write_whole
from benchmarks.own_process import forget_peak, in_own_process, memory_mb

METHODS = ("torch", "dense", "blocks", "symmetric", "ring")
EMBEDDING, GROUPS, TEMPERATURE, BLOCK = 128, 13, 0.1, 256
_SQUARE_BYTES = 4e9  # methods that hold matrices [n, n] are skipped if a few of them take more than this


def main() -> None:
    """Measure every method at every size, one after the other; write a table and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="512,1024,2048,4096,8192,16384,65536", help="sizes, separated by commas")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods, separated by commas")
    parser.add_argument("--repeats", type=int, default=3, help="calls after the first; the fastest counts")
    parser.add_argument("--out", type=Path, help="folder for loss.md and loss.png")
    parser.add_argument("--measure", nargs=2, metavar=("METHOD", "ROWS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(_measure(args.measure[0], int(args.measure[1]), args.repeats)))
        return
    methods = args.methods.split(",")
    if unknown := set(methods) - set(METHODS):
        raise InputError(f"Unknown methods {sorted(unknown)}; must be among {', '.join(METHODS)}.")
    results = []
    for n in map(int, args.rows.split(",")):
        for method in methods:
            if method in ("torch", "dense") and 6 * 4 * n * n > _SQUARE_BYTES:
                continue
            found = in_own_process("benchmarks.loss", "--measure", method, n, f"--repeats={args.repeats}")
            results.append({"method": method, "rows": n} | found)
            print(_row(results[-1]), flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_whole(args.out / "loss.md", "\n".join([_row(None), *map(_row, results)]) + "\n")
        _plot(results, args.out / "loss.png")


def _measure(method: str, n: int, repeats: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, EMBEDDING)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    groups = rng.integers(0, GROUPS, n)
    make = _torch if method == "torch" else _jax
    call, product, planned_mb = make(method, z, groups)
    edge = 2048
    peak = 2 * edge**3 / _fastest(product, repeats)
    # Excludes the compiler's peak and the memory held now.
    forget_peak()
    before = memory_mb("VmRSS")
    seconds = _fastest(call, repeats)
    work = 3 * 2 * n**2 * EMBEDDING
    extra_mb = memory_mb("VmHWM") - before if planned_mb is None else planned_mb
    return {"seconds": seconds, "extra_mb": extra_mb, "share_of_peak": work / seconds / peak}


# The loss with its gradient, the product that shows the peak, and the memory planned for the first on an accelerator.
_Made = tuple[Callable[[], object], Callable[[], object], float | None]


def _jax(method: str, z: np.ndarray, groups: np.ndarray) -> _Made:
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    from awcl_jax.losses.awcl import awcl_loss
    from awcl_jax.losses.ring import ring_awcl_loss
    from awcl_jax.runtime import sharding

    if method == "ring":  # no effect on an accelerator
        jax.config.update("jax_num_cpu_devices", 2)

    def mean_loss(z: jax.Array, ids: jax.Array, group: jax.Array) -> jax.Array:
        other = z if method == "symmetric" else jnp.array(z, copy=True)
        return awcl_loss(
            z,
            other,
            anchor_ids=ids,
            contrast_ids=ids,
            anchor_groups=group,
            contrast_groups=group,
            temperature=TEMPERATURE,
            block_size=len(z) if method == "dense" else BLOCK,
        ).mean()

    def mean_loss_around(z: jax.Array, ids: jax.Array, group: jax.Array) -> jax.Array:
        losses = ring_awcl_loss(z, ids=ids, groups=group, temperature=TEMPERATURE, block_size=BLOCK)
        return sharding.mean(losses.mean())

    arrays = (jnp.asarray(z), jnp.arange(len(z)), jnp.asarray(groups))
    loss_and_gradient = jax.value_and_grad(mean_loss)
    if method == "ring":
        mesh = sharding.make_mesh()
        arrays = sharding.place_batch((z, np.arange(len(z)), groups), mesh)
        apart = PartitionSpec(sharding.AXIS)
        loss_and_gradient = jax.shard_map(
            jax.value_and_grad(mean_loss_around), mesh=mesh, in_specs=apart, out_specs=(PartitionSpec(), apart)
        )
    # Compiled beforehand, so that the compiler's memory is not counted.
    compiled = jax.jit(loss_and_gradient).lower(*arrays).compile()
    square = jnp.ones((2048, 2048))
    # In float32 as in the loss; an accelerator would use fewer bits by default.
    product = jax.jit(functools.partial(jnp.matmul, precision="highest"))
    planned = None
    if jax.default_backend() != "cpu":
        sizes = compiled.memory_analysis()
        assert sizes is not None
        planned = (sizes.temp_size_in_bytes + sizes.output_size_in_bytes) / 2**20
    return (
        lambda: jax.block_until_ready(compiled(*arrays)),
        lambda: jax.block_until_ready(product(square, square)),
        planned,
    )


def supcontrast(z: Any, labels: Any) -> Any:
    """The loss of unit rows [n, d] with labels [n] as SupContrast, and with it the published code, writes it."""
    import torch

    logits = z @ z.T / TEMPERATURE
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    other = torch.ones_like(logits) - torch.eye(len(z), device=z.device)
    positive = torch.eq(labels[:, None], labels[None, :]).float() * other
    log_probability = logits - torch.log((torch.exp(logits) * other).sum(1, keepdim=True))
    return -((positive * log_probability).sum(1) / positive.sum(1)).mean()


def _torch(method: str, z: np.ndarray, groups: np.ndarray) -> _Made:
    try:
        import torch
    except ImportError:
        raise InputError("PyTorch is not installed; install it or leave `torch` out of --methods.") from None
    del method
    rows, labels = torch.from_numpy(z), torch.from_numpy(groups)

    def call() -> object:
        leaf = rows.clone().requires_grad_()
        loss = supcontrast(leaf, labels)
        loss.backward()
        return leaf.grad

    square = torch.ones(2048, 2048)
    return call, lambda: square @ square, None


def _fastest(call: Callable[[], object], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _row(result: dict | None) -> str:
    if result is None:
        return "| rows | method | ms | extra MB | share of peak |\n|---|---|---|---|---|"
    return (
        f"| {result['rows']} | {result['method']} | {result['seconds'] * 1e3:.1f} | {result['extra_mb']:.0f} | "
        f"{result['share_of_peak']:.0%} |"
    )


def _plot(results: list[dict], out: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = (("seconds", "seconds, forward and backward"), ("extra_mb", "extra memory, MB"))
    for ax, (field, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for method in dict.fromkeys(result["method"] for result in results):
            points = [(r["rows"], r[field]) for r in results if r["method"] == method and r[field] > 0]
            ax.loglog(*zip(*points, strict=True), marker="o", label=method)
        ax.set(title=title, xlabel="rows")
        ax.grid(alpha=0.3)
    ax.legend()
    figures.save(figure, out, dpi=120)


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
