"""Measure the pretraining step against the same network and loss in PyTorch: frames per second, share of peak, memory.

python -m benchmarks.step --out=DIR
python -m benchmarks.step --arch=vit_small --sizes=224 --methods=awcl_jax,torch
python -m benchmarks.step --arch=resnet50 --dtype=bfloat16 --sizes=224 --batch=256    # on an accelerator

Methods: `awcl_jax`, the whole step with augmentation and monitors; `remat`, the same with blocks recomputed for their
gradient; `chunks`, the same encoded in four parts (gradient caching); `torch`, PyTorch's step on ready views: the
network (channels last; of a vision transformer, timm's), the loss as in SupContrast and Adam, with `torch.compile` and
autocast on a GPU; `torch-kept`, the same in a process that keeps its pages, as runs of this package do
(`awcl_jax.runtime.memory`).

Each method is a separate process, and they take turns: a few steps of one, a few of the next, again and again, so that
disturbances of the machine affect all. The ratio is that of a turn; the table has the median and the extremes. On a
machine that others use, too, core seconds change less than seconds do.
Frames are views: a batch of 32 gives 64. The peak is that of a matrix product in the same process and type; the work is
that of the convolutions forward and backward, as `benchmarks.scaling` counts it.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from awcl_jax.runtime import memory as host_memory
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import write_whole
from benchmarks import own_process
from benchmarks.loss import EMBEDDING, GROUPS, TEMPERATURE, supcontrast
from benchmarks.scaling import encoder_operations

METHODS = ("awcl_jax", "remat", "chunks", "torch-kept", "torch")
DTYPES = ("float32", "bfloat16")
_EDGE = 2048


def main() -> None:
    """Measure all methods at every size, in turns; write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18", help="encoder (default: %(default)s)")
    parser.add_argument("--width", type=float, default=1.0, help="width factor of the encoder (default: %(default)s)")
    parser.add_argument("--sizes", default="64,112,224", help="edges of a view, with commas (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="frames, two views each (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the arithmetic (default: %(default)s)")
    parser.add_argument("--methods", default=",".join(METHODS), help="with commas (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="of each method (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="of each turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for step.md and step.json")
    parser.add_argument("--serve", metavar="METHOD", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        _serve(args)
        return
    methods = args.methods.split(",")
    if unknown := set(methods) - set(METHODS):
        raise InputError(f"Unknown methods {sorted(unknown)}; must be among {', '.join(METHODS)}.")
    rows = []
    print(_head(args), flush=True)
    for size in map(int, args.sizes.split(",")):
        found = _in_turns(args, methods, size)
        rows += [{"size": size, "method": method} | found[method] for method in methods]
        for row in rows[-len(methods) :]:
            print(_row(row), flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_whole(args.out / "step.json", json.dumps(rows, indent=2) + "\n")
        write_whole(args.out / "step.md", "\n".join([_head(args), *map(_row, rows)]) + "\n")


def _in_turns(args: argparse.Namespace, methods: list[str], size: int) -> dict[str, dict[str, Any]]:
    """Return seconds of a step in every turn, share of the peak and memory of each method."""
    options = [f"--{name}={getattr(args, name)}" for name in ("arch", "width", "batch", "dtype", "steps")]
    command = [sys.executable, "-m", "benchmarks.step", *options, f"--sizes={size}"]
    work = encoder_operations(args.arch, args.width, size) * 2 * args.batch
    servers = {}
    for method in methods:
        memory = {} if method == "torch" else host_memory.ENVIRONMENT
        if not method.startswith("torch"):
            # As for a run, whose step is compiled by another process, or was at an earlier start.
            subprocess.run(
                [*command, f"--serve={method}"], env=os.environ | memory, stdin=subprocess.DEVNULL, check=True
            )
        servers[method] = subprocess.Popen(
            [*command, f"--serve={method}"],
            env=os.environ | memory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        _answer(servers[method])  # loaded and warm before the next one starts
    turns: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    for _ in range(args.turns):
        for method, server in servers.items():
            assert server.stdin is not None
            server.stdin.write("\n")
            server.stdin.flush()
            turns[method].append(_answer(server))
    for server in servers.values():
        server.communicate()
    found = {}
    for method, answers in turns.items():
        seconds = [answer["seconds"] for answer in answers]
        last = turns[methods[-1]]
        ratios = [other["seconds"] / own for own, other in zip(seconds, last, strict=True)]
        found[method] = {
            "seconds": seconds,
            "frames_per_second": 2 * args.batch / statistics.median(seconds),
            "share_of_peak": work / statistics.median(seconds) / max(answer["peak"] for answer in answers),
            "memory_mb": answers[-1]["memory_mb"],
            "ratios": ratios,
            "core_seconds": statistics.median(answer["core_seconds"] for answer in answers),
            "core_ratios": [
                other["core_seconds"] / own["core_seconds"] for own, other in zip(answers, last, strict=True)
            ],
        }
    return found


def _answer(server: subprocess.Popen[str]) -> dict[str, float]:
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        raise InputError(f"A measurement ended with status {server.wait()}; see its output above.")
    return json.loads(line)


def _serve(args: argparse.Namespace) -> None:
    """Prepare, print a line, and take a turn for each line on stdin."""
    ways: dict[str, Callable[..., _Made]] = {
        "awcl_jax": our_step,
        "remat": functools.partial(our_step, remat=True),
        "chunks": functools.partial(our_step, chunks=4),
        "torch-kept": _torch,
        "torch": _torch,
    }
    make = ways[args.serve]
    steps, product, memory_mb = make(args.arch, args.width, int(args.sizes), args.batch, args.dtype)
    steps(2)
    _say({})
    for _ in sys.stdin:
        before = time.process_time()
        seconds = _timed(functools.partial(steps, args.steps)) / args.steps
        core_seconds = (time.process_time() - before) / args.steps
        product()
        peak = 2 * _EDGE**3 / min(_timed(product) for _ in range(3))
        _say({"seconds": seconds, "core_seconds": core_seconds, "peak": peak, "memory_mb": memory_mb()})


def _say(answer: dict[str, float]) -> None:
    print(json.dumps(answer), flush=True)


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# So many steps, a matrix product that shows the peak, and the most megabytes held so far.
_Made = tuple[Callable[[int], object], Callable[[], object], Callable[[], float]]


def our_program(
    arch: str, width: float, size: int, batch: int, dtype: str, *, remat: bool = False, chunks: int = 1
) -> tuple[Any, Any, Any]:
    """Return the pretraining step, a state, and a batch of frames already on the devices."""
    import numpy as np

    from awcl_jax.augment.options import Augmentation
    from awcl_jax.config import build
    from awcl_jax.config.pretraining import default_config
    from awcl_jax.losses.awcl import LossOptions
    from awcl_jax.pretrain.step import make_step
    from awcl_jax.runtime import cache, sharding
    from awcl_jax.train import initial_state as first_state

    host_memory.free_before_the_next()
    cache.keep_compiled_programs()
    config = default_config()
    config.model.arch, config.model.width_factor, config.model.dtype = arch, width, dtype
    config.model.remat = remat
    config.augment.size = size
    model = build.make_model(config)
    learning_rate, optimiser = build.make_optimiser(config)
    mesh = sharding.make_mesh()
    augmentation = Augmentation(size=size)
    body = make_step(
        model,
        optimiser,
        learning_rate=learning_rate,
        augmentation=augmentation,
        loss=LossOptions(temperature=TEMPERATURE),
        chunks=chunks,
        seed=0,
    )
    step = sharding.map_step(body, mesh)
    name = program_name(arch, width, size, batch, dtype, remat=remat, chunks=chunks)
    state = sharding.replicate(first_state.FirstState(model, optimiser, seed=0, name=name).wait(), mesh)
    rng = np.random.default_rng(0)
    frames = {
        "image": rng.integers(0, 256, (batch, size, size), dtype=np.uint8),
        "label": rng.integers(0, GROUPS, batch, dtype=np.int32),
        "row": np.arange(batch, dtype=np.int32),
    }
    return step, state, sharding.place_batch(frames, mesh)


def program_name(
    arch: str, width: float, size: int, batch: int, dtype: str, *, remat: bool = False, chunks: int = 1
) -> dict[str, Any]:
    """Return what decides `our_program`, to keep its compiled programs by."""
    return {"benchmark": "step", "of": [arch, width, size, batch, dtype, remat, chunks]}


def our_step(
    arch: str, width: float, size: int, batch: int, dtype: str, *, remat: bool = False, chunks: int = 1
) -> _Made:
    """Return `our_program` as a function to call."""
    import jax
    import jax.numpy as jnp

    from awcl_jax.runtime import sharding

    given = arch, width, size, batch, dtype
    step, state, placed = our_program(*given, remat=remat, chunks=chunks)
    mesh = sharding.make_mesh()
    on_cpus = sharding.on_cpus(mesh)
    name = program_name(*given, remat=remat, chunks=chunks)
    step = sharding.compile_step(step, state, placed, mesh=mesh, name=name)
    host_memory.return_freed_pages()
    if isinstance(step, jax.stages.Compiled):
        host_memory.reserve(sharding.temporary_bytes(step))

    def steps(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, metrics = step(state, placed)
            if on_cpus:
                jax.block_until_ready(metrics)  # as in a run
        jax.block_until_ready(state)

    square = jnp.ones((_EDGE, _EDGE), dtype)
    product = jax.jit(jnp.matmul)

    def memory_mb() -> float:
        held = jax.devices()[0].memory_stats()
        return held["peak_bytes_in_use"] / 2**20 if held else own_process.memory_mb("VmHWM")

    return steps, lambda: jax.block_until_ready(product(square, square)), memory_mb


def _torch(arch: str, width: float, size: int, batch: int, dtype: str) -> _Made:
    try:
        import torch
    except ImportError:
        raise InputError("PyTorch is not installed; install it or leave `torch` out of --methods.") from None
    from torch import nn

    from awcl_jax.models.vit import SIZES
    from tests.helpers.torch_resnet import TorchResNet

    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    if arch in SIZES:
        encoder, features = _timm(arch, width, size)
    else:
        encoder = TorchResNet(arch, channels=1, width=round(64 * width))
        features = round(64 * width) * (32 if arch == "resnet50" else 8)
    head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, EMBEDDING))
    model: Any = nn.Sequential(encoder, head)
    model.train().requires_grad_().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=on_gpu)
    views = torch.randn(2 * batch, 1, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, GROUPS, (batch,), device=device).repeat(2)

    def loss() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            z = model(views)
        return supcontrast(nn.functional.normalize(z.float(), dim=1), labels)

    compiled = torch.compile(loss) if on_gpu else loss

    def finish() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def steps(count: int) -> None:
        for _ in range(count):
            optimiser.zero_grad(set_to_none=True)
            compiled().backward()
            optimiser.step()
        finish()

    square = torch.ones(_EDGE, _EDGE, device=device, dtype=getattr(torch, dtype))

    def product() -> None:
        square @ square
        finish()

    def memory_mb() -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if on_gpu else own_process.memory_mb("VmHWM")

    return steps, product, memory_mb


def _timm(arch: str, width: float, size: int) -> tuple[Any, int]:
    """Return timm's vision transformer for grey pictures, and the number of its features."""
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError:
        raise InputError("timm is not installed; install it or leave `torch` out of --methods.") from None
    from awcl_jax.models.vit import HEAD, SIZES, ViTOptions

    depth, heads = SIZES[arch]
    heads = max(1, round(heads * width))
    network = VisionTransformer(
        img_size=size,
        patch_size=ViTOptions().patch,
        in_chans=1,
        num_classes=0,
        embed_dim=HEAD * heads,
        depth=depth,
        num_heads=heads,
    )
    return network, HEAD * heads


def _head(args: argparse.Namespace) -> str:
    return (
        f"{args.arch} of width {args.width}, {args.batch} frames x 2 views, {args.dtype}, {platform.machine()}; "
        f"{args.turns} turns of {args.steps} steps\n\n"
        "| px | method | views/s | share of peak | peak MB | times as fast as the last (least, most) | "
        "core seconds a step | ratio of the last's (least, most) |\n"
        "|---|---|---|---|---|---|---|---|"
    )


def _row(row: dict[str, Any]) -> str:
    ratios, core_ratios = row["ratios"], row["core_ratios"]
    return (
        f"| {row['size']} | {row['method']} | {row['frames_per_second']:.1f} | {row['share_of_peak']:.0%} | "
        f"{row['memory_mb']:.0f} | {statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f}) | "
        f"{row['core_seconds']:.2f} | {statistics.median(core_ratios):.2f} "
        f"({min(core_ratios):.2f}, {max(core_ratios):.2f}) |"
    )


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
