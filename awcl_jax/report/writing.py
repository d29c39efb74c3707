"""Writes the page of a run into its folder, or that of several runs side by side, as one self-contained file."""

import base64
import dataclasses
import hashlib
import importlib.resources
import sys
from collections.abc import Sequence
from pathlib import Path

from awcl_jax.report import comparison, payload, tables
from awcl_jax.report.contents import Run, read_run
from awcl_jax.report.embedding_map import LABELS, MAP_FILE, FrameMap
from awcl_jax.report.machines import by_machine
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import write_whole

PAGE_FILE = "report.html"

_FILES = importlib.resources.files("awcl_jax.report")
_SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    *(f"page/{name}.js" for name in ("theme", "curves", "frames", "cells", "map", "page")),
)
_STYLES = ("vendor/uPlot.min.css", "page/page.css")


def leave_in(workdir: Path, frame_map: FrameMap | None = None, *, home: str | Path | None = None) -> Path | None:
    """Write the page of a run that has ended. If that fails, print one line; the run is not lost.

    Args:
      workdir: the run's folder.
      frame_map: its map of embeddings, which is stored beside the page.
      home: the user's name of the folder, if it is not `workdir`.

    Returns:
      The page; None if it could not be written.
    """
    try:
        if frame_map is not None:
            frame_map.save(workdir / MAP_FILE)
        return write_page([workdir], workdir / PAGE_FILE)
    except (OSError, InputError) as error:
        reason = " ".join(str(error).splitlines())
        print(
            f"warning: the run is complete, but its {PAGE_FILE} could not be written ({reason}). To write it "
            f"later, run `python -m awcl_jax.report {home or workdir}`.",
            file=sys.stderr,
        )
        return None


def write_page(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of these runs; the file appears when it is complete.

    Args:
      folders: of the runs.
      out: the page.

    Returns:
      `out`.

    Raises:
      InputError: a folder is not a run, or a file in it is damaged.
      OSError: a file cannot be read, or the page cannot be written.
    """
    text = page_of(_with_unique_names([read_run(folder) for folder in folders], folders))
    write_whole(out, text)
    return out


def _with_unique_names(runs: Sequence[Run], folders: Sequence[Path]) -> list[Run]:
    """Add parent folders to the names of runs until no two have the same name."""
    names, above = [run.name for run in runs], [folder.resolve().parent for folder in folders]
    while len(set(names)) < len(names) and any(folder.name for folder in above):
        names = [f"{folder.name}/{name}" if folder.name else name for folder, name in zip(above, names, strict=True)]
        above = [folder.parent for folder in above]
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def page_of(runs: Sequence[Run]) -> str:
    """Return the page of these runs as HTML, the same for the same runs."""
    import jinja2  # here, because a run starts without it

    script = "\n".join(_text(name) for name in _SCRIPTS)
    style = "\n".join(_text(name) for name in _STYLES)
    # Data of the runs is in the page as escaped text and JSON; these tags would end its elements.
    assert "</script" not in script
    assert "</style" not in style
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _text(f"page/{name}")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cells = [payload.cells(run) for run in runs]
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template("page.html.jinja").render(
        runs=runs,
        tables=tables,
        scores=tables.score_table(runs),
        compositions=[tables.composition(run) for run in runs],
        confusions=[tables.confusion(run) for run in runs],
        machines=[by_machine(run) for run in runs],
        warnings=comparison.warnings(runs),
        differences=comparison.differences(runs),
        cells=cells,
        settings=list(tables.settings(runs)),
        labels=LABELS,
        data={
            "runs": [run.name for run in runs],
            "panels": payload.panels(runs),
            "cells": cells,
            "maps": [None if run.frames is None else payload.frame_map(run.frames) for run in runs],
        },
        most_points=payload.MOST_POINTS,
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
    )


def _text(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
