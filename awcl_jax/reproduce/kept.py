"""Finished runs without what is large: small enough to commit, enough for every table, and to continue elsewhere."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from awcl_jax.config.fields import to_dict
from awcl_jax.reproduce.study import Run
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import atomic_write, require_plain_tree
from awcl_jax.train import checkpoint, run_folder
from awcl_jax.train.metrics import METRICS_FILE

_TABLES = (METRICS_FILE, run_folder.FRAMES_FILE)
_PATHS = ("path", "init", "unlabelled")  # fields of any group that name folders
_SOURCES = ("encoder", "initial")  # results that do


def keep(run: Run, out: Path, kept: Path) -> None:
    """Copy of a finished run what tables and curves are made of: no checkpoints, no pictures, no names of folders.

    Args:
      run: of the study.
      out: the study's folder.
      kept: folder of the copies.

    Raises:
      OSError: it cannot be written.
    """
    source, copy = out / run.folder, kept / run.folder
    copy.mkdir(parents=True, exist_ok=True)
    for name in _TABLES:
        if (source / name).is_file():
            with atomic_write(copy / name) as part:
                shutil.copyfile(source / name, part)
    about = run_folder.read_run_config(source)
    about["config"] = {
        group: {name: _last_part(v) if name in _PATHS else v for name, v in value.items()}
        if isinstance(value, dict)
        else value
        for group, value in about["config"].items()
    }
    run_folder.write_json(copy / run_folder.CONFIG_FILE, about)
    results = {name: value for name, value in run_folder.read_results(source).items() if name not in _SOURCES}
    run_folder.write_json(copy / run_folder.RESULTS_FILE, results)  # the last, because it makes the run a finished one


def _last_part(path: Any) -> Any:
    return [_last_part(one) for one in path] if isinstance(path, list) else PurePath(path).name


def take(runs: Sequence[Run], kept: Path, out: Path) -> None:
    """Copy finished runs that `keep` copied into a study where they are missing.

    Args:
      runs: of the study, each after those that it depends on.
      kept: folder of the copies, or of a study.
      out: the study's folder.

    Raises:
      InputError: there is no run; or one has other settings than the study, which is found before the first is copied.
      OSError: a file cannot be read or written.
    """
    found = [run for run in runs if is_finished(run, kept)]
    if not found:
        raise InputError(f"{kept} has no finished run of this study. Check --resume, --preset and --methods.")
    for run in found:
        require_plain_tree(kept / run.folder, links=False)
    require_same(found, kept)
    for run in found:
        if not is_finished(run, out):
            keep(run, kept, out)
            # With the paths of this machine, so that the run can be made again here.
            about = run_folder.read_run_config(out / run.folder) | {"config": to_dict(run.final_config())}
            run_folder.write_json(out / run.folder / run_folder.CONFIG_FILE, about)


def is_finished(run: Run, out: Path) -> bool:
    """Return whether a run has results in a study's folder."""
    return (out / run.folder / run_folder.RESULTS_FILE).is_file()


def to_do(runs: Sequence[Run], out: Path) -> list[Run]:
    """Return the runs without results, and those whose checkpoints are missing though one of the former needs them."""
    unfinished = {run.folder for run in runs if not is_finished(run, out)}
    needed = {run.config.encoder.init for run in runs if run.folder in unfinished and "encoder" in run.config}
    return [
        run
        for run in runs
        if run.folder in unfinished
        or (str(out / run.folder) in needed and not (out / run.folder / checkpoint.FOLDER).is_dir())
    ]


def forget_results(run: Run, out: Path) -> None:
    """Delete the results of a run that is made again, so that it does not count as finished until it is."""
    (out / run.folder / run_folder.RESULTS_FILE).unlink(missing_ok=True)


def require_same(runs: Iterable[Run], out: Path) -> None:
    """Check that finished runs have the settings of the study, and those that are compared the same data.

    Of weights that they started from the names are compared, because each machine has its own folders.

    Raises:
      InputError: one has other settings, or other data.
    """
    data: dict[tuple[str, int], tuple[Path, str]] = {}
    for run in runs:
        if not is_finished(run, out):
            continue
        folder = out / run.folder
        about = run_folder.read_run_config(folder)
        before, now = run_folder.shared_fields(about["config"]), _settings(run)
        if run.learning_rate is not None:
            now.pop("optim.learning_rate")  # found by other runs
        # A field that only one of the two has is of another version, and does what the field's default does.
        if changed := sorted(name for name in before.keys() & now.keys() if before[name] != now[name]):
            listed = ", ".join(f"{name} ({before[name]} -> {now[name]})" for name in changed)
            raise InputError(
                f"{folder} was made with other settings than this study's: {listed}. Choose another folder, or delete "
                "that run to make it again."
            )
        compared = run.folder.partition("/")[0], len(run.config.data.get("unlabelled", ()))
        other, expected = data.setdefault(compared, (folder, about["data"]))
        if about["data"] != expected:
            raise InputError(
                f"{folder} saw other data than {other} (fingerprints {about['data']} and {expected}), so their scores "
                "cannot be compared. Prepare the dataset as it was, or delete one of the two."
            )


def _settings(run: Run) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(json.dumps(run_folder.shared_fields(to_dict(run.config))))
    return fields
