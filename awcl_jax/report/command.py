"""The page of a run, or of several side by side: `python -m awcl_jax.report RUN [RUN ...]`.

A run writes its page, `report.html`, when it ends. This command writes it again from the run's folder, also for a run
that has not ended yet.
"""

from collections.abc import Sequence
from pathlib import Path

from awcl_jax.runtime import bucket
from awcl_jax.runtime.arguments import Parser
from awcl_jax.runtime.cli import exit_on_bad_input, require_name
from awcl_jax.runtime.errors import InputError

COMPARISON = "comparison.html"


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run, or of several side by side.

    Args:
      runs: run folders; the others are compared with the first.
      out: the page; by default `report.html` in the run's folder, or `comparison.html` here for several runs.

    Returns:
      The path of the page, which needs no other file and no network.

    Raises:
      InputError: there is no run, or one twice; a folder is not a run; `out` does not end in .html, or has no folder.
      OSError: the page cannot be written.
    """
    if not runs:
        raise InputError("A page must have at least one run; got none.")
    seen: set[Path] = set()
    for run in runs:
        if run.resolve() in seen:
            raise InputError(f"A page must have different runs; got {run} twice.")
        seen.add(run.resolve())
    if out is not None and out.suffix != ".html":
        raise InputError(f"--out must end in .html; got {out}.")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"The folder of --out={out} does not exist. Create {out.parent}, or choose another --out.")
    # Imported here, so that --help and bad arguments do not wait for JAX.
    from awcl_jax.report import writing

    if out is None:
        out = runs[0] / writing.PAGE_FILE if len(runs) == 1 else Path(COMPARISON)
    return writing.write_page(runs, out)


@exit_on_bad_input()
def main(argv: Sequence[str] | None = None) -> None:
    """Write the page as the arguments specify."""
    args = _parser().parse_args(argv)
    from awcl_jax.train.workdir import fetch_run

    for run in args.runs:
        require_name("RUN", run)
    require_name("--out", args.out)
    runs = [fetch_run(run, checkpoint=False) for run in args.runs]
    page = write_report(runs, None if args.out is None else Path(args.out).expanduser())
    written = str(page)
    if args.out is None and len(runs) == 1 and bucket.on_bucket(args.runs[0]):
        bucket.send(page.parent, [page.name], args.runs[0])
        written = f"{args.runs[0].rstrip('/')}/{page.name}"
    print(f"{written}  {page.stat().st_size / 1e6:.2f} MB")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m awcl_jax.report",
        description="Write the page of a run, finished or not, or of several runs side by side: one file for any "
        "browser. Several are compared with the first: differences of their scores, paired by test frame.",
        epilog="examples:\n"
        "  python -m awcl_jax.report runs/20260101-120000-fine\n"
        "  python -m awcl_jax.report runs/simclr runs/coarse runs/fine --out=methods.html",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="run folder, also on a bucket (gs://BUCKET/FOLDER); several to compare with the first",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=f"output page, .html (default: report.html in the run's folder; {COMPARISON} here for several runs)",
    )
    return parser
