"""Run methods x seeds x tasks and write the tables: `python -m awcl_jax.reproduce --out=DIR`.

Finished runs are skipped, and stopped runs resume, with the same results as uninterrupted ones. Each run has a folder
below --out, as written by `python -m awcl_jax.main`; its output goes to logs/.
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from awcl_jax.runtime import memory
from awcl_jax.runtime.arguments import Parser
from awcl_jax.runtime.cache import keep_compiled_programs
from awcl_jax.runtime.cli import exit_on_bad_input, require_name, silence_libraries
from awcl_jax.runtime.errors import InputError

if TYPE_CHECKING:
    from awcl_jax.reproduce.study import Run, Study

PRESETS = ("phantom-small", "public", "public-long", "public-weights")
_MOST_SEEDS = 10_000  # all runs are listed before the first begins


@runtime_checkable
class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Part = TypeVar("_Part", bound=_Named)


@exit_on_bad_input()
def main(argv: Sequence[str] | None = None) -> None:
    """Run the unfinished runs of a study, and write its tables."""
    args = _parser().parse_args(argv)
    require_name("--out", args.out)
    require_name("--imagenet", args.imagenet)
    require_name("--keep", args.keep)
    require_name("--resume", args.resume)
    memory.keep_freed_pages()
    # Imported here, so that --help does not wait for JAX.
    from awcl_jax.reproduce import kept as kept_runs
    from awcl_jax.reproduce import study
    from awcl_jax.reproduce import tables as study_tables

    silence_libraries()
    keep_compiled_programs()
    out = Path(args.out).expanduser().absolute()
    kept = Path(args.keep).expanduser().absolute() if args.keep else None
    plan = _plan(args)
    runs = list(study.runs(plan, out))
    if args.resume:
        kept_runs.take(runs, Path(args.resume).expanduser().absolute(), out)
    if not args.only_tables:
        run_all(runs, out, kept)
    elif not out.is_dir():
        raise InputError(
            f"{out} does not exist: --only_tables needs a study there. Check --out, or omit --only_tables."
        )
    elif not any((out / run.folder).is_dir() for run in runs):
        raise InputError(f"{out} has no run of this study: --only_tables needs one. Check --out and --preset.")
    study_tables.write(plan, out)
    print(f"\n{(out / study_tables.TABLES_FILE).read_text('utf-8')}\nTables, figures and runs are in {out}")


def run_all(runs: Sequence["Run"], out: Path, kept: Path | None = None) -> None:
    """Finish all unfinished runs, one after the other.

    Args:
      runs: ordered so that each follows those that it depends on.
      out: parent of their folders.
      kept: folder to which every finished run is copied without its checkpoints; None for no copies.

    Raises:
      InputError: a dataset does not exist, or a run has bad input; then the message begins with its name. Or a finished
        run has other settings or other data.
    """
    from awcl_jax.downstream import runner as downstream
    from awcl_jax.pretrain import runner as pretrain
    from awcl_jax.reproduce import kept as kept_runs
    from awcl_jax.reproduce import study as studies
    from awcl_jax.runtime.bar import Bar

    commands = {studies.PRETRAIN: pretrain.run, studies.DOWNSTREAM: downstream.run}
    kept_runs.require_same(runs, out)
    todo = kept_runs.to_do(runs, out)
    _require_datasets(todo)
    if kept is not None:
        for run in runs:
            if kept_runs.is_finished(run, out):
                kept_runs.keep(run, out, kept)
    again = [run.folder for run in todo if kept_runs.is_finished(run, out)]
    which = f" ({', '.join(again)} again, because its encoder is needed)" if again else ""
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished, in {out}{which}", flush=True)
    with Bar(total=sum(run.work for run in todo), bar_format="{l_bar}{bar}| {elapsed}<{remaining} {desc}") as bar:
        for number, run in enumerate(todo, start=1):
            bar.set_description_str(f"{number}/{len(todo)} {run.folder}")
            try:
                with _into(out / "logs" / f"{run.folder.replace('/', '-')}.txt"):
                    kept_runs.forget_results(run, out)
                    commands[run.kind](run.final_config(), out / run.folder)
            except InputError as error:
                raise InputError(f"{run.folder}: {error}") from None
            kept_runs.require_same(runs, out)
            if kept is not None:
                kept_runs.keep(run, out, kept)
            bar.update(run.work)


def _require_datasets(todo: Sequence["Run"]) -> None:
    """Check that all datasets exist before the first run, because some are used only by the last, hours later.

    Raises:
      InputError: one does not.
    """
    from awcl_jax.data.scans import find_dataset

    used = [path for run in todo for path in (run.config.data.path, *run.config.data.get("unlabelled", ()))]
    for path in dict.fromkeys(filter(None, used)):
        find_dataset(path)


@contextlib.contextmanager
def _into(log: Path) -> Iterator[None]:
    """Append what is printed meanwhile to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


def _plan(args: argparse.Namespace) -> "Study":
    from awcl_jax.reproduce import presets

    if malformed := [pair for pair in args.data if not all(pair.partition("="))]:
        raise InputError(f"--data must be NAME=DIR; got {malformed[0]!r}.")
    paths = {
        name: str(Path(folder).expanduser().absolute()) for name, _, folder in (p.partition("=") for p in args.data)
    }
    if args.data and args.preset == "phantom-small":
        raise InputError("--data needs --preset=public, because the small preset makes its own frames. Omit --data.")
    imagenet = _weights(args)
    match args.preset:
        case "public":
            plan = presets.public(paths, imagenet=imagenet)
        case "public-long":
            plan = presets.public_long(paths)
        case "public-weights":
            assert imagenet is not None  # by `_weights`
            plan = presets.public_weights(paths, imagenet=imagenet)
        case _:
            plan = presets.phantom_small()
    if args.seeds is not None:
        plan = dataclasses.replace(plan, seeds=tuple(range(args.seeds)))
    if args.repeats is not None:
        plan = dataclasses.replace(plan, repeats=args.repeats)
    if args.methods is not None:
        plan = dataclasses.replace(plan, methods=_chosen("methods", plan.methods, args.methods))
    if args.tasks is not None:
        plan = dataclasses.replace(plan, tasks=_chosen("tasks", plan.tasks, args.tasks))
    if args.preset != "phantom-small":
        presets.require_datasets(plan, paths)
    if args.variations is not None:
        plan = dataclasses.replace(plan, variations=_chosen("variations", plan.variations, args.variations))
    if args.ratios is not None:
        plan = dataclasses.replace(plan, ratios=tuple(_ratio(text) for text in filter(None, args.ratios.split(","))))
    return plan


def _weights(args: argparse.Namespace) -> str | None:
    """Return the absolute path of --imagenet, if the preset uses it.

    Raises:
      InputError: it is not a file, or is missing, or the preset does not use it.
    """
    if args.preset == "public-weights" and not args.imagenet:
        raise InputError("--preset=public-weights needs --imagenet=FILE with the weights of a ResNet-50.")
    if not args.imagenet:
        return None
    if args.preset not in ("public", "public-weights"):
        raise InputError(
            "--imagenet needs --preset=public or public-weights, because its ResNet-50 is too large for "
            f"--preset={args.preset}."
        )
    path = Path(args.imagenet).expanduser().absolute()
    if not args.only_tables and not path.is_file():
        raise InputError(f"--imagenet must be a file with the weights of a ResNet-50; {path} is not a file.")
    return str(path)


def _chosen(kind: str, of: Sequence[_Part], names: str) -> tuple[_Part, ...]:
    known = {one.name: one for one in of}
    chosen = list(filter(None, names.split(",")))
    if unknown := [name for name in chosen if name not in known]:
        raise InputError(f"Unknown --{kind} {', '.join(unknown)}; known: {', '.join(known) or 'none'}.")
    return tuple(known[name] for name in chosen)


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 < ratio < 1:
        raise InputError(f"--ratios must be numbers above 0 and below 1, separated by commas; got {text!r}.")
    return ratio


def _parser() -> Parser:
    parser = Parser(
        prog="python -m awcl_jax.reproduce",
        description=__doc__.partition("\n\n")[2],
        epilog="example: python -m awcl_jax.reproduce --out=runs/study\n"
        "example: python -m awcl_jax.reproduce --preset=public --data=fetal_planes_db=DIR --data=hc18=DIR "
        "--data=usgra=DIR --out=runs/public",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the study")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default=PRESETS[0],
        help="phantom-small: simulated frames, a quarter of an hour on two cores (default); public: real frames; "
        "public-long: ten times the steps; public-weights: from --imagenet at 112 pixels, also with few masks",
    )
    parser.add_argument(
        "--data",
        metavar="NAME=DIR",
        action="append",
        default=[],
        help="a prepared dataset; repeat for each. Datasets that no task uses are for pretraining without labels",
    )
    parser.add_argument(
        "--imagenet",
        metavar="FILE",
        help="ImageNet ResNet-50 weights (.safetensors, .pth; v1 strides) for the methods that start from them",
    )
    parser.add_argument("--seeds", metavar="N", type=_positive, help="use seeds 0 to N - 1 instead of the preset's")
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=_not_negative,
        help="runs of the first seed with another rounding, which show what scores move by without any reason; instead "
        "of the preset's (phantom-small: 0, the others: 1)",
    )
    parser.add_argument("--methods", metavar="A,B", help="only these methods of the preset")
    parser.add_argument("--tasks", metavar="A,B", help="only these tasks; '' for pretraining and probes only")
    parser.add_argument("--variations", metavar="A,B", help="only these variations of pretraining; '' for none")
    parser.add_argument(
        "--ratios", metavar="A,B", help="anatomy ratios of the curve instead of the preset's; '' for none"
    )
    parser.add_argument(
        "--keep",
        metavar="DIR",
        help="also copy every finished run there, without checkpoints and pictures: small enough to commit",
    )
    parser.add_argument(
        "--resume",
        metavar="DIR",
        help="begin with the finished runs of such a folder, perhaps of another machine. Encoders that unfinished "
        "tasks need are trained again",
    )
    parser.add_argument(
        "--only_tables", action="store_true", help="run nothing; write the tables of finished runs in --out"
    )
    return parser


def _positive(text: str) -> int:
    return _whole(text, 1)


def _not_negative(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, fewest: int) -> int:
    if not text.isdecimal() or not fewest <= int(text) <= _MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"must be a whole number from {fewest} to {_MOST_SEEDS:,}; got {text!r}")
    return int(text)
