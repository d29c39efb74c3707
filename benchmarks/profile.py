"""Profile a pretraining step with JAX's profiler: time by part and by operation.

python -m benchmarks.profile
python -m benchmarks.profile --arch=resnet50 --dtype=bfloat16 --size=224 --batch=256 --out=DIR    # on an accelerator

Time is that of a CPU's threads, or an accelerator's streams; an operation's time excludes operations that it calls.
Parts are named scopes of the program; XLA fuses several operations into one, and its time counts for the part of the
last of them. With --out the trace is also kept, for https://ui.perfetto.dev or TensorBoard.
"""

import argparse
import json
import os
import platform
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from awcl_jax.runtime import memory
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.files import write_whole
from benchmarks.step import DTYPES, our_program

_LONGEST = 10  # operations that the table names

# The first whose pattern is in the name of an operation; "jvp(encoder)" is forward, "transpose(jvp(encoder))" backward.
PARTS = (
    ("augmentation", r"two_views"),
    ("loss, backward", r"transpose\(jvp\(loss"),
    ("loss", r"\bloss\b"),
    ("projection, backward", r"transpose\(jvp.*/projection"),
    ("projection", r"/projection"),
    ("encoder, backward: convolutions", r"transpose\(jvp.*/encoder/.*conv\d?/"),
    ("encoder, backward: batch norm", r"transpose\(jvp.*/encoder/.*bn\d?/"),
    ("encoder, backward: others", r"transpose\(jvp.*/encoder"),
    ("encoder: convolutions", r"/encoder/.*conv\d?/"),
    ("encoder: batch norm", r"/encoder/.*bn\d?/"),
    ("encoder: others", r"/encoder"),
    ("norm of the gradients", r"\bnorm\b"),
    ("monitors", r"monitors"),
    ("update", r"update"),
)
_OTHERS = "without a name"


class Event(NamedTuple):
    """An operation on one thread or stream, in nanoseconds."""

    name: str
    start: int
    duration: int


def main() -> None:
    """Profile some steps and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18", help="encoder (default: %(default)s)")
    parser.add_argument("--width", type=float, default=1.0, help="width factor of the encoder (default: %(default)s)")
    parser.add_argument("--size", type=int, default=112, help="edge of a view (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="frames, two views each (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the arithmetic (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="that are profiled (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for profile.md, profile.json and the trace")
    args = parser.parse_args()
    memory.keep_freed_pages()
    with tempfile.TemporaryDirectory() as scratch:
        found = profiled(args, args.out or Path(scratch))
    text = "\n".join(_table(args, found))
    print(text)
    if args.out:
        write_whole(args.out / "profile.md", f"{text}\n")
        write_whole(args.out / "profile.json", json.dumps(found, indent=2) + "\n")


def profiled(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of a step, and of what it spends them on."""
    import jax

    step, state, batch = our_program(args.arch, args.width, args.size, args.batch, args.dtype)
    named = operation_names(step.lower(state, batch).compile().as_text())
    for _ in range(2):
        state, _ = jax.block_until_ready(step(state, batch))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would be slower than the step
    with jax.profiler.trace(folder, profiler_options=options):
        start = time.perf_counter()
        for _ in range(args.steps):
            state, _ = jax.block_until_ready(step(state, batch))
        seconds = (time.perf_counter() - start) / args.steps
    trace = max(folder.rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    spent: Counter[str] = Counter()
    lines = 0
    for line in operations(trace, module="jit_step"):
        lines += 1
        spent.update(own_times(line))
    parts: Counter[str] = Counter()
    for operation, nanoseconds in spent.items():
        parts[part_of(named.get(operation, ""))] += nanoseconds
    return {
        "step": seconds,
        "lines": lines,
        "parts": {part: of / args.steps / 1e9 for part, of in parts.most_common()},
        "longest": [
            {"operation": operation, "name": named.get(operation, ""), "seconds": of / args.steps / 1e9}
            for operation, of in spent.most_common(_LONGEST)
        ],
    }


def operation_names(hlo: str) -> dict[str, str]:
    """Map each operation of a compiled program to its name in the source."""
    return dict(re.findall(r"%(\S+) = [^\n]*op_name=\"([^\"]*)\"", hlo))


def operations(trace: Path, *, module: str) -> Iterator[list[Event]]:
    """Yield the operations of a program in a trace, by thread or stream."""
    import jax

    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            events = []
            for event in line.events:
                stats = dict(event.stats)
                if stats.get("hlo_module") == module and "hlo_op" in stats:
                    events.append(Event(str(stats["hlo_op"]), round(event.start_ns), round(event.duration_ns)))
            if events:
                yield events


def own_times(events: Iterable[Event]) -> Counter[str]:
    """Count nanoseconds of each operation of one thread, without the operations within it."""
    own: Counter[str] = Counter()
    within: list[Event] = []
    for event in sorted(events, key=lambda event: (event.start, -event.duration)):
        while within and within[-1].start + within[-1].duration <= event.start:
            within.pop()
        if within:
            own[within[-1].name] -= event.duration
        own[event.name] += event.duration
        within.append(event)
    return own


def part_of(name: str) -> str:
    """Return the part of the step that an operation of this name belongs to."""
    return next((part for part, pattern in PARTS if re.search(pattern, name)), _OTHERS)


def _table(args: argparse.Namespace, found: dict[str, Any]) -> Iterator[str]:
    import jax

    busy = sum(found["parts"].values())
    device = jax.devices()[0]
    where = f"{os.cpu_count()} cores of {platform.machine()}" if device.platform == "cpu" else device.device_kind
    yield (
        f"{args.arch} of width {args.width}, {args.size} px, {args.batch} frames x 2 views, {args.dtype}, on {where}, "
        f"JAX {jax.__version__}: {found['step'] * 1e3:.1f} ms a step, {busy * 1e3:.1f} ms of operations on "
        f"{found['lines']} thread(s) or stream(s)\n"
    )
    yield "| part | ms a step | share |\n|---|---|---|"
    for part, seconds in found["parts"].items():
        yield f"| {part} | {seconds * 1e3:.2f} | {seconds / busy:.1%} |"
    yield "\n| longest operations | ms a step | share |\n|---|---|---|"
    for longest in found["longest"]:
        name = longest["name"].removeprefix("jit(step)/").replace("|", " ")
        seconds = longest["seconds"]
        yield f"| `{longest['operation']}`, {name or _OTHERS} | {seconds * 1e3:.2f} | {seconds / busy:.1%} |"


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
