"""The page of a run: `python -m awcl_jax.report RUN`, or of two side by side: `python -m awcl_jax.report RUN RUN`.

A run writes its page, `report.html`, when it ends. This writes it again, or that of a run that has not ended yet, from
what lies in its folder.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from awcl_jax.runtime import bucket
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError

COMPARISON = "comparison.html"


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run, or of two side by side.

    Args:
      runs: one folder of a run, or two.
      out: the page; by default `report.html` in the folder of the one run, or `comparison.html` here.

    Returns:
      The page, which needs no other file and no network.

    Raises:
      InputError: there are none, more than two, or one twice; a folder holds no run; `out` does not end in .html.
      OSError: the page cannot be written.
    """
    if not 1 <= len(runs) <= 2:
        raise InputError(f"A page shows one run, or two side by side; got {len(runs)}.")
    if len({run.resolve() for run in runs}) < len(runs):
        raise InputError(f"A page shows two different runs side by side; got {runs[0]} twice.")
    if out is not None and out.suffix != ".html":
        raise InputError(f"--out is a file that ends in .html; got {out}.")
    # Imported here, so that --help and bad arguments do not wait for JAX.
    from awcl_jax.report import writing

    if out is None:
        out = runs[0] / writing.PAGE_FILE if len(runs) == 1 else Path(COMPARISON)
    return writing.write_page(runs, out)


@exit_on_bad_input()
def main(argv: Sequence[str] | None = None) -> None:
    """Write the page that the arguments ask for."""
    args = _parser().parse_args(argv)
    from awcl_jax.train.workdir import fetch_run

    runs = [fetch_run(run, checkpoint=False) for run in args.runs]
    page = write_report(runs, None if args.out is None else Path(args.out).expanduser())
    told = str(page)
    if args.out is None and len(runs) == 1 and bucket.on_bucket(args.runs[0]):
        bucket.send(page.parent, [page.name], args.runs[0])
        told = f"{args.runs[0].rstrip('/')}/{page.name}"
    print(f"{told}  {page.stat().st_size / 1e6:.2f} MB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m awcl_jax.report",
        description="Write the page of a run, finished or not, or of two runs side by side: one file that any browser "
        "opens from disk.",
        epilog="examples:\n"
        "  python -m awcl_jax.report runs/20260101-120000-fine\n"
        "  python -m awcl_jax.report runs/fine runs/simclr --out=fine-simclr.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="folder of a run, also on a bucket (gs://BUCKET/FOLDER); one, or two to compare",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=f"page to make, .html (default: report.html in the run's folder; {COMPARISON} here for two runs)",
    )
    return parser
