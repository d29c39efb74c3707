"""The parts of `benchmarks.on_gpu`. Each is a process of its own, so JAX is imported late."""

import importlib.metadata
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from awcl_jax.runtime.errors import InputError
from benchmarks import gpu_numbers, peak, step
from benchmarks import loss as loss_benchmark
from benchmarks.gpu_sizes import FULL, Add, NoGpuError, Note, Sizes
from benchmarks.own_process import in_own_process


def machine(add: Add, note: Note, sizes: Sizes) -> None:
    """Report the versions, the peak of matrix products by type, and the bandwidth of the memory."""
    import jax
    import jax.numpy as jnp

    if sizes is FULL and jax.default_backend() != "gpu":
        raise NoGpuError(
            f"JAX finds no GPU (its platform is {jax.default_backend()}). Install JAX for CUDA, or pass --rehearse."
        )
    versions = [f"{name} {_version(name)}" for name in ("jax", "jaxlib", "torch", "torchvision", "timm", "onnxruntime")]
    note(f"{len(jax.devices())} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores")
    note(f"Python {sys.version.split()[0]}, {', '.join(versions)}")
    if missing := _missing_packages():
        note(f"not installed, so that parts may fail: {', '.join(missing)}")
    for name, dtype, precision in (
        ("bfloat16", "bfloat16", None),
        ("float32, highest precision", "float32", "highest"),
        ("float32, JAX's default precision", "float32", None),
    ):
        product = peak.jax_product(dtype, precision=precision, edge=sizes.edge)
        add(f"product of matrices in {name}", "TFLOP/s", [rate / 1e12 for rate in product.rates(sizes.turns)])
    array = jnp.ones(sizes.copied, jnp.float32)
    moved = jax.jit(lambda x: x + 1)
    jax.block_until_ready(moved(array))
    times = [peak.seconds(lambda: jax.block_until_ready(moved(array))) for _ in range(sizes.turns)]
    add("memory read and written", "GB/s", [2 * array.nbytes / 1e9 / seconds for seconds in times])


def steps(part: str) -> Callable[[Add, Note, Sizes], None]:
    """Return the part that compares steps of an encoder with PyTorch's."""

    def run(add: Add, note: Note, sizes: Sizes) -> None:
        arch = sizes.arch[part]
        settings: dict[str, Any] = {
            "arch": arch,
            "width": sizes.width,
            "size": sizes.pixels,
            "batch": sizes.batch,
            "dtype": sizes.dtype,
            "turns": sizes.turns,
            "steps": sizes.steps,
            "compiled_before": False,
        }
        reason = "it is not installed"
        found = {}
        if importlib.util.find_spec("torch"):
            try:
                found = step.in_turns(["awcl_jax", "torch"], **settings)
            except InputError as error:
                reason = str(error)
        found = found or step.in_turns(["awcl_jax"], **settings)
        for method, one in found.items():
            add(f"{arch}, {method}", "share of the peak", one["shares"])
            note(
                f"{arch}, {method} ({one['network']}): {one['frames_per_second']:.0f} views/s, "
                f"{one['memory_mb']:.0f} MB"
            )
        if "torch" in found:
            add(f"{arch}, our whole step", "times as fast as PyTorch's on ready views", found["awcl_jax"]["ratios"])
        else:
            note(f"nothing is compared with PyTorch: {reason}")

    return run


def loss(add: Add, note: Note, sizes: Sizes) -> None:
    """Measure the loss and its gradient as a share of the peak of float32 products; PyTorch's where it fits."""
    rates = peak.jax_product("float32", precision="highest", edge=sizes.edge).rates(sizes.turns)
    rate = float(np.median(rates))
    for n in sizes.rows:
        z, groups = loss_benchmark.rows_in_groups(n)
        ways = [("symmetric", loss_benchmark.BLOCK), ("blocks", loss_benchmark.BLOCK)]
        if n == sizes.rows[0]:
            ways += [("symmetric", block) for block in sizes.blocks]
        if n <= sizes.dense:
            ways.append(("dense", n))
        if n == max(sizes.rows):
            ways = ways[:1]
        for method, block in ways:
            call, memory_mb = loss_benchmark.jax_loss(method, z, groups, block=block)
            times = _several(call, sizes.turns)
            shares = [loss_benchmark.operations(n) / seconds / rate for seconds in times]
            add(f"loss of {n:,} rows, {method}, block of {block:,}", "share of the peak", shares)
            if memory_mb is not None:
                note(f"loss of {n:,} rows, {method}, block of {block:,}: {memory_mb():.0f} MB")
        if n <= sizes.dense and importlib.util.find_spec("torch"):
            found = in_own_process("benchmarks.loss", "--measure", "torch", n, f"--repeats={sizes.turns}")
            add(f"loss of {n:,} rows, SupContrast in PyTorch", "share of its peak", found["shares"])


def _several(call: Callable[[], object], turns: int, *, most: float = 6.0) -> list[float]:
    """Return seconds of a few calls after the first, or of the first alone if it takes longer than `most` seconds.

    The program is compiled before, so that a long first call is hardly longer than the others.
    """
    first = peak.seconds(call)
    return [peak.seconds(call) for _ in range(min(turns, int(most / first)))] or [first]


def waiting(add: Add, note: Note, sizes: Sizes) -> None:
    """Measure what a step takes with its data read, with data placed, and with data on the device.

    The difference of the first two is the time lost to reading, that of the last two the time lost to the host.
    """
    import jax

    from awcl_jax.data import pipeline
    from awcl_jax.data.reader import FrameReader
    from awcl_jax.data.sampler import EpochPlan
    from awcl_jax.data.scans import ScanIndex
    from awcl_jax.runtime import sharding
    from benchmarks.noise import write_noise

    cores = min(16, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as scratch:
        dataset = write_noise(Path(scratch), frames=2 * sizes.read, edge=sizes.stored)
        index = ScanIndex.from_dataset(dataset).split("train")
        one, state, _ = step.our_program("resnet18", sizes.width, sizes.pixels, sizes.read, sizes.dtype)
        mesh = sharding.make_mesh()
        plan = EpochPlan(np.arange(len(index)), batch_size=sizes.read, seed=0)
        plain, kept = FrameReader(index, sizes.stored, 0), FrameReader(index, sizes.stored, 2**14)

        def columns(reader: FrameReader) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
            return {"image": reader.read, "label": lambda frames: (frames % 13).astype(np.int32)}

        def read(reader: FrameReader, threads: int, count: int) -> Any:
            return pipeline.supervised_batches(plan, columns(reader), start=0, stop=count, threads=threads)

        ready = next(read(kept, 1, 1)).arrays
        placed = sharding.place_batch(ready, mesh)

        def take(batches: Any) -> float:
            """Return seconds of a step over these batches; the first one is read before."""
            nonlocal state
            batches = iter(batches)
            next(batches)
            start, count = time.perf_counter(), 0
            for count, batch in enumerate(batches, 1):  # noqa: B007
                state, _ = one(state, batch)
            jax.block_until_ready(state)
            return (time.perf_counter() - start) / count

        count = sizes.steps + 1
        ways: dict[str, Callable[[], float]] = {
            "on the device": lambda: take(itertools.repeat(placed, count)),
            "placed": lambda: take(sharding.place_batch(ready, mesh) for _ in range(count)),
        }
        for name, reader, threads in (
            ("kept in memory, 2 threads", kept, 2),
            ("decoded, 2 threads", plain, 2),
            (f"decoded, {cores} threads", plain, cores),
        ):
            ways[name] = lambda reader=reader, threads=threads: take(  # type: ignore[misc]
                sharding.place_batch(batch.arrays, mesh) for batch in read(reader, threads, count)
            )
        state, _ = jax.block_until_ready(one(state, placed))
        for way in ways.values():
            way()
        taken = [{name: way() for name, way in ways.items()} for _ in range(sizes.turns)]
    of = f"{sizes.read} frames, resnet18"
    for name in list(ways)[2:]:
        lost = [(turn[name] - turn["placed"]) / turn[name] for turn in taken]
        add(f"{of}, {name}: waiting for data", "share of the step", lost)
    lost = [(turn["placed"] - turn["on the device"]) / turn["placed"] for turn in taken]
    add(f"{of}: copying to the device", "share of the step", lost)
    started = _start_shares(one, state, placed, sizes.steps)
    add(f"{of}: the host starts a step", "share of the step", started)
    note(f"{of}: {1e3 * float(np.median([turn['on the device'] for turn in taken])):.1f} ms on the device")


def _start_shares(one: Callable[..., Any], state: Any, placed: Any, count: int) -> list[float]:
    """Return, of some steps, the share in which the host is busy starting them."""
    import jax

    shares = []
    for _ in range(count):
        start = time.perf_counter()
        state, _ = one(state, placed)
        started = time.perf_counter()
        jax.block_until_ready(state)
        shares.append((started - start) / (time.perf_counter() - start))
    return shares


def exports(add: Add, note: Note, sizes: Sizes) -> None:
    """Run an exported encoder: weights, the function of `jax.export`, and ONNX where a runtime is installed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        kinds = _write_exports(folder, sizes)
        frames = np.random.default_rng(0).integers(0, 256, (sizes.read, sizes.pixels, sizes.pixels), np.uint8)
        np.save(folder / "frames.npy", frames)
        subprocess.run(
            [sys.executable, "-m", "benchmarks.on_gpu", f"--cpu_features={folder}"],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            check=True,
        )
        expected = np.load(folder / "features.npy")
        from awcl_jax.embed import load_encoder

        ways: dict[str, Callable[[], np.ndarray]] = {}
        for kind in ("safetensors", "jax"):
            encode = load_encoder(folder / kind)
            ways[kind] = lambda encode=encode: np.asarray(encode(frames))  # type: ignore[misc]
        if "onnx" in kinds and importlib.util.find_spec("onnxruntime"):
            import onnxruntime

            session = onnxruntime.InferenceSession(
                folder / "onnx" / "encoder.onnx", providers=onnxruntime.get_available_providers()
            )
            name = session.get_inputs()[0].name
            ways["onnx"] = lambda: session.run(None, {name: frames})[0]
            note(f"ONNX Runtime uses {', '.join(session.get_providers())}")
        else:
            note("onnx or onnxruntime is not installed, so ONNX was left out.")
        for kind, way in ways.items():
            error = float(np.linalg.norm(way() - expected) / np.linalg.norm(expected))
            add(f"export as {kind}", "relative error of features to the CPU's", [error])
        taken = [{kind: peak.seconds(way) for kind, way in ways.items()} for _ in range(sizes.turns)]
        for kind in list(ways)[1:]:
            ratios = [turn[kind] / turn["safetensors"] for turn in taken]
            add(f"export as {kind}", "times the time of the encoder from safetensors", ratios)


def _write_exports(folder: Path, sizes: Sizes) -> list[str]:
    """Write one encoder in a folder for each format that is possible here."""
    import jax
    import jax.numpy as jnp

    from awcl_jax.export import encoder_files
    from awcl_jax.export.preprocessing import Preprocessing
    from awcl_jax.models.encoders import make_encoder

    model = make_encoder("resnet18", size=sizes.pixels, width_factor=sizes.width)
    blank = jnp.zeros((1, 32, 32, 1))
    variables = jax.device_get(jax.jit(lambda key: model.init(key, blank, train=False))(jax.random.key(0)))
    kinds = ["safetensors", "jax", *(["onnx"] if importlib.util.find_spec("onnx") else [])]
    for kind in kinds:
        (folder / kind).mkdir()
        encoder_files.write(
            folder / kind,
            variables,
            arch="resnet18",
            width_factor=sizes.width,
            strides="v1.5",
            preprocessing=Preprocessing(sizes.pixels, sizes.pixels, 0.17, 0.18),
            formats=(kind,),
            channels=1,
        )
    return kinds


def write_features(folder: Path) -> None:
    """Write the features of `frames.npy` by the exported weights, on JAX's default device."""
    from awcl_jax.embed import load_encoder

    np.save(folder / "features.npy", load_encoder(folder / "safetensors")(np.load(folder / "frames.npy")))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _missing_packages() -> list[str]:
    """Return the distributions that this package needs and that are not installed."""
    setup = (Path(__file__).parents[1] / "setup.py").read_text()
    needed = setup.split("install_requires=[", 1)[1].split("]", 1)[0]
    names = [line.split('"')[1].split(">")[0] for line in needed.splitlines() if '"' in line]
    return [name for name in names if _version(name) == "not installed"]


PARTS: Mapping[str, Callable[[Add, Note, Sizes], None]] = {
    "machine": machine,
    "numbers": gpu_numbers.numbers,
    "loss": loss,
    "waiting": waiting,
    "twice": gpu_numbers.twice,
    "exports": exports,
    **{part: steps(part) for part in FULL.arch},
}
"""Name -> function that measures it."""
