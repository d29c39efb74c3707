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
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from awcl_jax.runtime import figures
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import write_whole
from benchmarks import peak
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


def _measure(method: str, n: int, repeats: int) -> dict[str, Any]:
    z, groups = rows_in_groups(n)
    call, held_mb = _torch(z, groups) if method == "torch" else jax_loss(method, z, groups)
    rate = max(_product(method).rates(repeats))
    # Excludes the compiler's peak and the memory held now.
    forget_peak()
    before = memory_mb("VmRSS")
    call()
    every = [peak.seconds(call) for _ in range(repeats)]
    extra_mb = memory_mb("VmHWM") - before if held_mb is None else held_mb()
    shares = [operations(n) / seconds / rate for seconds in every]
    return {"seconds": min(every), "extra_mb": extra_mb, "share_of_peak": max(shares), "shares": shares}


def rows_in_groups(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return n random unit rows [n, d] in float32, and their groups [n]."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, EMBEDDING)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return z, rng.integers(0, GROUPS, n)


def _product(method: str) -> peak.Product:
    if method != "torch":
        # In float32 as in the loss; an accelerator would use fewer bits by default.
        return peak.jax_product("float32", precision="highest")
    import torch

    return peak.torch_product("float32", "cuda" if torch.cuda.is_available() else "cpu")


def operations(n: int) -> float:
    """Return the nominal operations of the loss of n rows and its gradient."""
    return 3 * 2 * n**2 * EMBEDDING


# The loss with its gradient, and on an accelerator the megabytes that it takes.
Made = tuple[Callable[[], Any], Callable[[], float] | None]


def jax_loss(method: str, z: np.ndarray, groups: np.ndarray, *, block: int = BLOCK) -> Made:
    """Return our loss of these rows by one of METHODS but `torch`, with `block` anchors in a block."""
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
            block_size=len(z) if method == "dense" else block,
        ).mean()

    def mean_loss_around(z: jax.Array, ids: jax.Array, group: jax.Array) -> jax.Array:
        losses = ring_awcl_loss(z, ids=ids, groups=group, temperature=TEMPERATURE, block_size=block)
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

    def planned() -> float:
        sizes = compiled.memory_analysis()
        assert sizes is not None
        return (sizes.temp_size_in_bytes + sizes.output_size_in_bytes) / 2**20

    on_cpu = jax.default_backend() == "cpu"
    return lambda: jax.block_until_ready(compiled(*arrays)), None if on_cpu else planned


def supcontrast(z: Any, labels: Any) -> Any:
    """The loss of unit rows [n, d] with labels [n] as SupContrast, and with it the published code, writes it."""
    import torch

    logits = z @ z.T / TEMPERATURE
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    other = torch.ones_like(logits) - torch.eye(len(z), device=z.device)
    positive = torch.eq(labels[:, None], labels[None, :]).float() * other
    log_probability = logits - torch.log((torch.exp(logits) * other).sum(1, keepdim=True))
    return -((positive * log_probability).sum(1) / positive.sum(1)).mean()


def _torch(z: np.ndarray, groups: np.ndarray) -> Made:
    try:
        import torch
    except ImportError:
        raise InputError("PyTorch is not installed; install it or leave `torch` out of --methods.") from None
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    rows, labels = torch.from_numpy(z).to(device), torch.from_numpy(groups).to(device)

    def call() -> object:
        leaf = rows.clone().requires_grad_()
        loss = supcontrast(leaf, labels)
        loss.backward()
        if on_gpu:
            torch.cuda.synchronize()
        return leaf.grad

    def held() -> float:
        return torch.cuda.max_memory_allocated() / 2**20

    return call, held if on_gpu else None


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
