"""Measure the pretraining step against the same network and loss in PyTorch: frames per second, share of peak, memory.

python -m benchmarks.step --out=DIR
python -m benchmarks.step --features --arch=vit_small --sizes=224 --methods=awcl_jax,torch    # a trained encoder's call
python -m benchmarks.step --arch=vit_small --sizes=224 --methods=awcl_jax,remat,torch --turns=3 --steps=1 --warmup=1
python -m benchmarks.step --arch=resnet50 --dtype=bfloat16 --sizes=224 --batch=256    # on an accelerator

Methods: `awcl_jax`, the whole step with augmentation and monitors; `remat`, the same with blocks recomputed for their
gradient; `chunks`, the same encoded in four parts (gradient caching); `torch`, PyTorch's step on ready views: the
network (that of an export, or timm's vision transformer or ConvNeXt where timm is installed; channels last), the loss
as in SupContrast and Adam, with `torch.compile` and autocast on a GPU; `torch-kept`, the same in a process that keeps
its pages, as runs of this package do (`awcl_jax.runtime.memory`).

With --features it is not a step but a call of the encoder, as frozen encoders are called: `awcl_jax` from uint8 frames
with their preprocessing, `torch` in `inference_mode`, on ready float32 pictures; as many pictures as a step has views.

Each method is a separate process, and they take turns: a few steps of one, a few of the next, again and again, so that
disturbances of the machine affect all. The ratio is that of a turn; the table has the median and the extremes. On a
machine that others use, too, core seconds change less than seconds do.
Frames are views: a batch of 32 gives 64. The peak is that of a matrix product in the same process and type; the work is
that of the convolutions forward and backward, as `benchmarks.scaling` counts it; of a vision transformer that of all
tokens, though ours leaves out what its last block computes of other tokens than the class token. Memory is the most
that the process held up to the end of its first turn, when no product had been made yet.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from awcl_jax.runtime import memory as host_memory
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import write_whole
from benchmarks import own_process, peak
from benchmarks.loss import EMBEDDING, GROUPS, TEMPERATURE, supcontrast
from benchmarks.scaling import encoder_operations

METHODS = ("awcl_jax", "remat", "chunks", "torch-kept", "torch")
_OF_FEATURES = ("awcl_jax", "torch")
DTYPES = ("float32", "bfloat16")


def main() -> None:
    """Measure all methods at every size, in turns; write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18", help="encoder (default: %(default)s)")
    parser.add_argument("--width", type=float, default=1.0, help="width factor of the encoder (default: %(default)s)")
    parser.add_argument("--sizes", default="64,112,224", help="edges of a view, with commas (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="frames, two views each (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the arithmetic (default: %(default)s)")
    parser.add_argument("--methods", help=f"with commas (default: {','.join(METHODS)}; the first and last of features)")
    parser.add_argument("--turns", type=int, default=5, help="of each method (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="of each turn (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the first turn (default: %(default)s)")
    parser.add_argument("--features", action="store_true", help="a call of the encoder instead of a step")
    parser.add_argument("--out", type=Path, help="folder for step.md and step.json")
    parser.add_argument("--serve", metavar="METHOD", help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        if args.compile:
            from awcl_jax.runtime import kept_programs  # imports JAX

            kept_programs.compile_anew()
        _serve(args)
        return
    known = _OF_FEATURES if args.features else METHODS
    methods = args.methods.split(",") if args.methods else known
    if unknown := set(methods) - set(known):
        raise InputError(f"Unknown methods {sorted(unknown)}; must be among {', '.join(known)}.")
    rows = []
    print(_head(args), flush=True)
    for size in map(int, args.sizes.split(",")):
        names = ("arch", "width", "batch", "dtype", "turns", "steps", "warmup", "features")
        found = in_turns(methods, size=size, **{name: getattr(args, name) for name in names})
        rows += [{"size": size, "method": method} | found[method] for method in methods]
        for row in rows[-len(methods) :]:
            print(_row(row), flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_whole(args.out / "step.json", json.dumps(rows, indent=2) + "\n")
        write_whole(args.out / "step.md", "\n".join([_head(args), *map(_row, rows)]) + "\n")


def in_turns(
    methods: Sequence[str],
    *,
    arch: str,
    width: float,
    size: int,
    batch: int,
    dtype: str,
    turns: int,
    steps: int,
    warmup: int = 2,
    features: bool = False,
    compiled_before: bool = True,
) -> dict[str, dict[str, Any]]:
    """Return what was measured of each method: seconds of a step and share of the peak in every turn, memory, ...

    Args:
      methods: of METHODS; ratios are to the last.
      arch, width, size, batch, dtype: as the options of this command.
      turns: of each method.
      steps: of a turn.
      warmup: steps before the first turn.
      features: measure a call of the encoder instead of a step.
      compiled_before: let another process compile our step, so that compiling has left no memory in the measured one.

    Raises:
      InputError: a method's process failed; its error is on stderr.
    """
    options = {"arch": arch, "width": width, "batch": batch, "dtype": dtype, "steps": steps, "sizes": size}
    command = [sys.executable, "-m", "benchmarks.step", *(f"--{name}={value}" for name, value in options.items())]
    command += ["--features"] if features else []
    work = encoder_operations(arch, width, size, gradient=not features) * 2 * batch
    networks = {}
    taken: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    with contextlib.ExitStack() as started:  # at its end the processes find no more lines, and end
        servers = {}
        for method in methods:
            # A run's process keeps its pages; that of whoever calls an encoder is not ours to set.
            memory = {} if method == "torch" or features else host_memory.ENVIRONMENT
            serve = [*command, f"--warmup={warmup}", f"--serve={method}"]
            if compiled_before and not features and not method.startswith("torch"):
                # As for a run, whose step is compiled by another process, or was at an earlier start.
                quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
                subprocess.run([*serve, "--warmup=0", "--compile"], env=os.environ | memory, check=True, **quiet)
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            servers[method] = started.enter_context(subprocess.Popen(serve, env=os.environ | memory, **pipes))
            networks[method] = _answer(servers[method])["network"]  # loaded and warm before the next one starts
        for _ in range(turns):
            for method, server in servers.items():
                assert server.stdin is not None
                server.stdin.write("\n")
                server.stdin.flush()
                taken[method].append(_answer(server))
    found = {}
    for method, answers in taken.items():
        seconds = [answer["seconds"] for answer in answers]
        last = taken[methods[-1]]
        ratios = [other["seconds"] / own for own, other in zip(seconds, last, strict=True)]
        found[method] = {
            "seconds": seconds,
            "network": networks[method],
            "frames_per_second": 2 * batch / statistics.median(seconds),
            "shares": [work / answer["seconds"] / answer["peak"] for answer in answers],
            "share_of_peak": work / statistics.median(seconds) / max(answer["peak"] for answer in answers),
            "memory_mb": answers[-1]["memory_mb"],
            "ratios": ratios,
            "core_seconds": statistics.median(answer["core_seconds"] for answer in answers),
            "core_ratios": [
                other["core_seconds"] / own["core_seconds"] for own, other in zip(answers, last, strict=True)
            ],
        }
    return found


def _answer(server: subprocess.Popen[str]) -> dict[str, Any]:
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
    if args.features:
        ways = {"awcl_jax": our_features, "torch": functools.partial(_torch, features=True)}
    make = ways[args.serve]
    steps, make_product, memory_mb, network = make(args.arch, args.width, int(args.sizes), args.batch, args.dtype)
    steps(args.warmup)
    _say({"network": network})
    product, held_mb = None, 0.0
    for _ in sys.stdin:
        before = time.process_time()
        seconds = peak.seconds(functools.partial(steps, args.steps)) / args.steps
        core_seconds = (time.process_time() - before) / args.steps
        if product is None:
            # The matrices, and what compiling their product takes, are not the step's.
            held_mb = memory_mb()
            product = make_product()
        rate = max(product.rates(3))
        _say({"seconds": seconds, "core_seconds": core_seconds, "peak": rate, "memory_mb": held_mb})


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


# So many steps, how to make products that show the peak, the most megabytes held so far, and whose network it is.
_Made = tuple[Callable[[int], object], Callable[[], peak.Product], Callable[[], float], str]


def our_program(
    arch: str,
    width: float,
    size: int,
    batch: int,
    dtype: str,
    *,
    remat: bool = False,
    chunks: int = 1,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Any, Any, Any]:
    """Return the pretraining step, a state, and a batch of frames already on the devices.

    Args:
      arch, width, size, batch, dtype: as the options of this command.
      remat: recompute blocks for their gradient.
      chunks: parts that a batch is encoded in.
      changes: other fields of the configuration, such as `{"optim.name": "sgd"}`.
    """
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
    config.update_from_flattened_dict(dict(changes))
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
    name = program_name(arch, width, size, batch, dtype, remat=remat, chunks=chunks) | {"changes": dict(changes)}
    state = first_state.FirstState(model, optimiser, seed=0, name=name).place(mesh)
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

    from awcl_jax.runtime import sharding

    host_memory.keep_freed_pages()
    given = arch, width, size, batch, dtype
    step, state, placed = our_program(*given, remat=remat, chunks=chunks)
    mesh = sharding.make_mesh()
    on_cpus = sharding.on_cpus(mesh)
    name = program_name(*given, remat=remat, chunks=chunks)
    step = sharding.compile_step(step, state, placed, mesh=mesh, name=name)
    step = sharding.keep_place(step)

    def steps(count: int) -> None:
        nonlocal state
        for _ in range(count):
            state, metrics = step(state, placed)
            if on_cpus:
                jax.block_until_ready(metrics)  # as in a run
        jax.block_until_ready(state)

    return steps, functools.partial(peak.jax_product, dtype), _our_memory_mb, "awcl_jax"


def our_features(arch: str, width: float, size: int, batch: int, dtype: str) -> _Made:
    """Return a call of an untrained encoder for features."""
    import jax
    import numpy as np

    from awcl_jax.augment.options import Augmentation
    from awcl_jax.config import build
    from awcl_jax.config.pretraining import default_config
    from awcl_jax.evaluate.encode import make_encode
    from awcl_jax.runtime import cache
    from awcl_jax.train.initial_state import initial_variables

    cache.keep_compiled_programs()
    config = default_config()
    config.model.arch, config.model.width_factor, config.model.dtype = arch, width, dtype
    config.augment.size = size
    model = build.make_model(config)
    encode, variables = make_encode(model, Augmentation(size=size)), initial_variables(model, seed=0)
    frames = np.random.default_rng(0).integers(0, 256, (2 * batch, size, size), dtype=np.uint8)

    def calls(count: int) -> None:
        for _ in range(count):
            np.asarray(encode(variables, jax.device_put(frames)))

    return calls, functools.partial(peak.jax_product, dtype), _our_memory_mb, "awcl_jax"


def _our_memory_mb() -> float:
    import jax

    held = jax.devices()[0].memory_stats()
    return held["peak_bytes_in_use"] / 2**20 if held else own_process.memory_mb("VmHWM")


def _torch(arch: str, width: float, size: int, batch: int, dtype: str, *, features: bool = False) -> _Made:
    try:
        import torch
    except ImportError:
        raise InputError("PyTorch is not installed; install it or leave `torch` out of --methods.") from None
    from torch import nn

    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    if on_gpu:
        torch.backends.cudnn.benchmark = True  # choose the fastest convolutions, as XLA does
    encoder, wide, network = _torch_network(arch, width, size)
    head = nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, EMBEDDING))
    model: Any = nn.Sequential(encoder, head)
    model.train().requires_grad_().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=on_gpu)
    views = torch.randn(2 * batch, 1, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, GROUPS, (batch,), device=device).repeat(2)

    def loss() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            z = model(views)
        return supcontrast(nn.functional.normalize(z.float(), dim=1), labels)

    compiled, how = loss, "eager"
    if on_gpu and not features:
        compiled, how = torch.compile(loss), "torch.compile"
        try:
            compiled().backward()
        except Exception as error:  # whatever its compiler lacks here
            compiled, how = loss, f"eager, because torch.compile failed with {type(error).__name__}"

    def finish() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def steps(count: int) -> None:
        for _ in range(count):
            optimiser.zero_grad(set_to_none=True)
            compiled().backward()
            optimiser.step()
        finish()

    @torch.inference_mode()
    def calls(count: int) -> None:
        for _ in range(count):
            with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
                encoder(views).float().cpu()

    def memory_mb() -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if on_gpu else own_process.memory_mb("VmHWM")

    if features:
        encoder.eval()
    return (
        calls if features else steps,
        functools.partial(peak.torch_product, dtype, device),
        memory_mb,
        f"{network}, PyTorch {torch.__version__}, {how}",
    )


def _torch_network(arch: str, width: float, size: int) -> tuple[Any, int, str]:
    """Return the encoder for grey pictures in PyTorch, the number of its features, and whose it is.

    It is the one that an export has beside its weights, or timm's for another than a ResNet where timm is installed.
    """
    from awcl_jax.models import convnext
    from awcl_jax.models.vit import HEAD, SIZES, ViTOptions

    if arch in convnext.STAGES:
        return _torch_convnext(arch, round(convnext.WIDTH * width), size)
    if arch not in SIZES:
        from awcl_jax.export import encoder_torch

        of_arch = {"channels": 1, "arch": arch, "width": round(64 * width), "strides": "v1.5"}
        resnet: Any = encoder_torch.Encoder(of_arch, {"size": size}, frame_size=size)
        resnet.forward = resnet.features  # views are preprocessed
        return resnet, round(64 * width) * (32 if arch == "resnet50" else 8), "that of an export"
    depth, heads = SIZES[arch]
    heads = max(1, round(heads * width))
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError:
        from awcl_jax.export import encoder_torch_vit

        of_size = {"channels": 1, "vit": vars(ViTOptions()), "width": HEAD * heads, "heads": heads, "depth": depth}
        vit: Any = encoder_torch_vit.Encoder(of_size, {"size": size}, frame_size=size)
        vit.forward = vit.features
        return vit, HEAD * heads, "that of an export"
    network = VisionTransformer(
        img_size=size,
        patch_size=ViTOptions().patch,
        in_chans=1,
        num_classes=0,
        embed_dim=HEAD * heads,
        depth=depth,
        num_heads=heads,
    )
    return network, HEAD * heads, "timm's"


def _torch_convnext(arch: str, width: int, size: int) -> tuple[Any, int, str]:
    from awcl_jax.models.convnext import STAGES

    try:
        import timm
    except ImportError:
        from awcl_jax.export import encoder_torch_convnext

        made_of = {"channels": 1, "arch": arch, "width": width, "stages": STAGES[arch]}
        network: Any = encoder_torch_convnext.Encoder(made_of, {"size": size}, frame_size=size)
        network.forward = network.features  # views are preprocessed
        return network, 8 * width, "that of an export"
    dims = tuple(width * 2**stage for stage in range(4))
    return timm.create_model(arch, in_chans=1, num_classes=0, dims=dims), 8 * width, "timm's"


def _head(args: argparse.Namespace) -> str:
    return (
        f"{args.arch} of width {args.width}, {args.batch} frames x 2 views, {args.dtype}, {platform.machine()}; "
        f"{args.turns} turns of {args.steps} {'calls of the encoder' if args.features else 'steps'}\n\n"
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
