"""The folder of a run: the configuration and data it belongs to, and files that are never half written."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

from awcl_jax.data.about import are_datasets
from awcl_jax.data.square import ASPECT, SQUASH, require_aspect
from awcl_jax.runtime.cache import cache_folder
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import atomic_write, require_plain_tree, require_regular, write_whole
from awcl_jax.runtime.formulas import is_formula, without_formula

CONFIG_FILE = "config.json"
RESULTS_FILE = "results.json"
FRAMES_FILE = "test_frames.csv"
UNREADABLE_FILE = "unreadable_frames.csv"

_LEVELS = 8  # of nesting, more than any of these files has


# Fields that may change when a run resumes: none of them affects the numbers.
FREE_ON_RESUME = (
    "data.path",
    "data.unlabelled",  # what is in them is part of the data's fingerprint
    "data.cache_mb",
    "data.disk_cache_gb",
    "data.threads",
    "data.skip_unreadable",  # the data's fingerprint depends on the frames left out
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.bad_steps",
    "train.mapping",
    "train.logger",
    "report.pictures",
    "report.map_frames",
)

# Fields of earlier versions: all their values gave the same numbers up to rounding. A run that has one still resumes.
REMOVED = ("loss.kernel",)


def open_run(
    workdir: Path,
    *,
    config: Mapping[str, Any],
    fingerprint: str,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    pixels: str | None = None,
    aspect: str = SQUASH,
    begun: bool = False,
    datasets: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Start a run in this folder, or check that the folder holds the same run.

    Args:
      workdir: created if it does not exist.
      config: the configuration as plain values.
      fingerprint: of the data.
      defaults: plain values, for fields that did not exist in the version that started the run.
      pixels: fingerprint of some of its frames' pixels; not checked for runs started without one.
      aspect: how its frames are made square, see `data.square`.
      begun: another process, perhaps on another host, has started the run.
      datasets: what the datasets say about themselves (`data.about.as_json`); stored, not compared.

    Raises:
      InputError: the folder holds another run (a field that decides the numbers, or the data, differ), or other files;
        or a link; or the started run is missing, because the hosts do not share the folder.
      OSError: it cannot be written.
    """
    file = workdir / CONFIG_FILE
    # Listed before the next check: another process of this run writes its config.json first.
    others = [f for f in workdir.iterdir() if f.suffix != ".part"] if workdir.is_dir() else []
    if begun and not file.exists():
        raise InputError(
            f"The run has started, but not in this host's {workdir.absolute()}. Choose a --workdir that all hosts "
            "share."
        )
    if not file.exists():
        if others:
            raise InputError(
                f"{workdir} is not empty and not a run folder: {CONFIG_FILE} not found. Choose another --workdir."
            )
        workdir.mkdir(parents=True, exist_ok=True)
        known = {"pixels": pixels, ASPECT: aspect if aspect != SQUASH else None, "datasets": list(datasets)}
        write_json(
            file, {"config": config, "data": fingerprint} | {name: value for name, value in known.items() if value}
        )
        return
    require_plain_tree(workdir, links=False)
    before = read_run_config(workdir)
    if before.get("data") != fingerprint:
        raise InputError(
            f"{workdir} holds a run on other data (fingerprint {before.get('data')}, now {fingerprint}). "
            "Pass that data's path or another --workdir."
        )
    if pixels is not None and before.get("pixels", pixels) != pixels:
        raise InputError(
            f"{workdir} holds a run on other pictures, though with the same ids and labels (fingerprint "
            f"{before['pixels']}, now {pixels}). Pass that data's path or another --workdir.{_older_phantoms(config)}"
        )
    if (was := read_aspect(workdir)) != aspect:
        raise InputError(
            f"{workdir} holds a run on frames made square by {was}, but its dataset now records {aspect}. Pass the "
            "dataset as it was or another --workdir."
        )
    now, otherwise = json.loads(json.dumps([config, dict(defaults)]))
    if changed := changed_fields(before["config"], now, otherwise):
        if [field.split()[0] for field in changed] == ["train.steps"]:
            raise InputError(_other_length(workdir, before["config"], now))
        raise InputError(f"{workdir} holds another run, with other {', '.join(changed)}. Choose another --workdir.")


def _older_phantoms(config: Mapping[str, Any]) -> str:
    """Return where phantoms are that were made before a new version of the package made another."""
    data = config.get("data", {})
    if data.get("dataset") != "phantom" or data.get("path"):
        return ""
    folder = cache_folder("datasets") / "phantom" / data["preset"]
    return f" The phantom has changed with its version: the earlier ones made here are in {folder}."


def _other_length(workdir: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what to do about a run whose only change is its number of steps."""
    old, new = before["train"]["steps"], now["train"]["steps"]
    if not (workdir / RESULTS_FILE).is_file():
        return (
            f"{workdir} holds an unfinished run of train.steps={old}, to which its learning rate is fitted; got {new}. "
            f"Resume it with --config.train.steps={old}, or choose another --workdir."
        )
    if new < old or "task" in now:
        return f"{workdir} holds a finished run of train.steps={old}; got {new}. Choose another --workdir."
    more = new - old
    warmup = "" if before["optim"]["warmup_steps"] < more else "--config.optim.warmup_steps=0 "
    return (
        f"{workdir} holds a finished run of train.steps={old}, to which its learning rate was fitted, so it cannot "
        f"become one of {new}. Start a run of {more} more steps from its encoder and head, with a new learning-rate "
        f"schedule and optimiser state: python -m awcl_jax.main --config={workdir / CONFIG_FILE} "
        f"--config.model.init={workdir} --config.model.init_head --config.train.steps={more} "
        f"{warmup}--workdir={workdir}-longer"
    )


def read_run_config(workdir: Path) -> dict[str, Any]:
    """Return what `open_run` wrote: the run's `config`, plain values by group, and `data`, the fingerprint.

    Raises:
      InputError: the file holds no configuration.
      OSError: it does not exist, or cannot be read.
    """
    content = read_json(workdir / CONFIG_FILE)
    if not isinstance(content.get("config"), dict) or not isinstance(content.get("data"), str):
        raise InputError(
            f"{workdir / CONFIG_FILE} holds no configuration with the data's fingerprint. Restore the file or "
            "choose another run."
        )
    return content


def read_aspect(workdir: Path) -> str:
    """Return how the frames of a run are made square; a run of an earlier version squashes them.

    Raises:
      InputError: as `read_run_config`, or the aspect is unknown.
    """
    return require_aspect(read_run_config(workdir).get(ASPECT), workdir / CONFIG_FILE)


def split_checkpoint(path: Path) -> tuple[Path, int | None]:
    """Return the folder of a run, and the step if the path is that of a checkpoint in it (`RUN/checkpoints/1000`)."""
    if path.name.isdecimal() and path.parent.name == "checkpoints":
        return path.parents[1], int(path.name)
    return path, None


def no_checkpoint(run: Path, step: int | None, *, latest: int | None) -> InputError:
    """Return the error of a run that has no checkpoint, or none of the step that was asked for."""
    found = "none" if latest is None else f"up to step {latest}"
    return InputError(f"{run} has no checkpoint{'' if step is None else f' of step {step}'} (available: {found}).")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new, never half of one."""
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_frames(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV with a row for each test frame, read by `read_frames`; a reader sees the old file or the new.

    Spreadsheets run a cell that begins like a formula, and ids and labels may be a stranger's: such a text gets an
    apostrophe, by which spreadsheets show it as it is.
    """
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        for row in rows:
            table.writerow({name: without_formula(cell) for name, cell in row.items()})


def read_frames(path: Path) -> list[dict[str, str]]:
    """Return the rows that `write_frames` wrote, as text.

    Raises:
      InputError: the file is not a table with a cell for each column.
      OSError: it cannot be read.
    """
    with path.open(newline="", encoding="utf-8") as file:
        try:
            rows = list(csv.DictReader(file))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a table ({error}). Restore or delete it.") from None
    if not rows or any(None in row or None in row.values() for row in rows):
        raise InputError(f"{path} is not a table with a cell for each column. Restore or delete it.")
    return [
        {name: cell[1:] if cell[:1] == "'" and is_formula(cell) else cell for name, cell in row.items()} for row in rows
    ]


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
      InputError: the file is not a JSON object.
    """
    require_regular(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}). Restore the file or choose another run.") from None
    if not isinstance(content, dict) or _is_deeper(content, _LEVELS):
        raise InputError(f"{path} is not a JSON object as a run writes it. Restore the file or choose another run.")
    return content


def read_results(workdir: Path) -> dict[str, Any]:
    """Return the results of a run that has ended, else nothing; the form of known fields is checked.

    Raises:
      InputError: the file is not as a run writes it.
      OSError: it cannot be read.
    """
    file = workdir / RESULTS_FILE
    results = read_json(file) if file.is_file() else {}
    wrong = [name for name, value in results.items() if not _FORMS.get(name, _are_scores_if_any)(value)]
    if not wrong:
        sides = {len(results.get("anatomies", ()))}
        tables = sorted({"confusion", "knn_confusion"} & results.keys())
        wrong = [name for name in tables if {len(results[name]), *map(len, results[name])} != sides]
    if wrong:
        raise InputError(
            f"{file} has {wrong[0]!r} in a form that no run writes. Restore the file or choose another run."
        )
    return results


def are_scores(value: Any) -> bool:
    """Return whether a field of the results holds scores: by name, each a dict with its `value`."""
    return isinstance(value, dict) and bool(value) and all(isinstance(v, dict) and "value" in v for v in value.values())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_counts_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _are_splits(value: Any) -> bool:
    keys = {"frames", "labelled", "scans", "patients"}
    return isinstance(value, dict) and all(
        isinstance(counts, dict) and counts.keys() == keys and all(map(_is_count, counts.values()))
        for counts in value.values()
    )


def _are_batches(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"batches", "anatomies", "training_frames", "drawn"}:
        return False
    columns = [value[name] for name in ("anatomies", "training_frames", "drawn")]
    forms = (_are_names, _are_counts, _are_counts)
    return (
        _is_count(value["batches"])
        and all(form(column) for form, column in zip(forms, columns, strict=True))
        and len({len(column) for column in columns}) == 1
    )


def _is_initial(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() - {"warning"} == {"source", "loaded", "new"}
        and all(isinstance(text, str) for text in value.values())
    )


def _is_score(score: Mapping[str, Any]) -> bool:
    bounds = all(score.get(name) is None or _is_number(score[name]) for name in ("value", "low", "high"))
    return bounds and all(_is_count(score.get(name, 0)) for name in ("frames", "patients"))


def _are_scores_if_any(value: Any) -> bool:
    return not are_scores(value) or all(map(_is_score, value.values()))


def _is_matrix(value: Any) -> bool:
    return isinstance(value, list) and all(map(_are_counts, value))


def _are_scores(value: Any) -> bool:
    return value == {} or (are_scores(value) and _are_scores_if_any(value))


_FORMS: Mapping[str, Callable[[Any], bool]] = {
    "steps": _is_count,
    "chosen_step": _is_count,
    "data": lambda value: isinstance(value, str),
    "datasets": are_datasets,
    "frames": _are_splits,
    "machines": _are_counts_by_name,
    "initial": _is_initial,
    "anatomies": _are_names,
    "confusion": _is_matrix,
    "knn_confusion": _is_matrix,
    "batches": _are_batches,
    "verdict": _are_names,
    "validation": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    **dict.fromkeys(("pixels", "untrained", "trained", "test", "baseline"), _are_scores),
}


def _is_deeper(value: Any, levels: int) -> bool:
    inside = [value]
    for _ in range(levels):
        groups = [v.values() if isinstance(v, dict) else v for v in inside if isinstance(v, dict | list)]
        inside = [v for group in groups for v in group]
    return any(isinstance(v, dict | list) for v in inside)


def changed_fields(
    old: dict[str, Any], new: dict[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
) -> list[str]:
    """List the fields that affect a run's numbers and differ between two configurations: "field (old -> new)".

    A version without a field computes the numbers of the field's default, so a field missing in `old` is compared by
    its value in `defaults`.
    """
    before, after = deciding_fields(defaults) | deciding_fields(old), deciding_fields(new)
    return [
        f"{field} ({before.get(field)} -> {after.get(field)})"
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field)
    ]


def deciding_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that affect a run's numbers, by names such as `data.size`; paths and the like do not."""
    return {field: value for field, value in flattened(values) if field not in FREE_ON_RESUME + REMOVED}


def shared_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that affect a run's numbers for others to read: of a path only its last part, no folders."""
    fields = deciding_fields(values)
    for name in ("model.init", "encoder.init"):
        if name in fields and not str(fields[name]).startswith("hf://"):
            fields[name] = PurePath(fields[name]).name
    return fields


def flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of nested groups, by names such as `data.size`."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
