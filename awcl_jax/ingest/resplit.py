"""Draw the splits of a prepared dataset again: its records are copied as they are, and nothing is decoded."""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int, Shaped

from awcl_jax.data.about import PATIENTS, About, patients_as_json
from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.private_table import private_table_of, read_private_table, write_private_table
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.selection import frames_by_machine
from awcl_jax.data.stored import open_dataset
from awcl_jax.ingest.own.builder import OwnScans
from awcl_jax.ingest.own.collect import Part
from awcl_jax.ingest.own.command import Prepared
from awcl_jax.ingest.own.manifest import SPLITS
from awcl_jax.ingest.own.patients import store_patients
from awcl_jax.ingest.own.plan import UNSPLIT, draw_splits
from awcl_jax.ingest.own.stratify import Kind
from awcl_jax.ingest.prepare import prepare
from awcl_jax.runtime.arguments import Parser
from awcl_jax.runtime.errors import InputError, first_line, in_words


def add_subcommand(datasets: "argparse._SubParsersAction[Parser]") -> None:
    """Add `resplit` to the subcommands of `python -m awcl_jax.ingest`."""
    parser = datasets.add_parser(
        "resplit",
        help="a prepared dataset with its splits drawn again, without decoding",
        description="Copy a prepared dataset with other splits. Patients are drawn as for your own scans: each is in\n"
        "one split, and anatomies are spread over the splits. Records are copied as they are.",
        epilog="examples: python -m awcl_jax.ingest resplit --dataset=data/own --seed=1 --out=data/own_seed1\n"
        "          python -m awcl_jax.ingest resplit --dataset=data/own --test_machine='Voluson S10' --out=data/other",
    )
    add = parser.add_argument
    add("--dataset", metavar="DIR", required=True, help="the prepared dataset")
    add("--test_share", type=float, default=0.2, metavar="S", help="test share of patients (default: %(default)s)")
    add("--val_share", type=float, default=0.1, metavar="S", help="validation share (default: %(default)s)")
    add(
        "--test_machine",
        action="append",
        default=[],
        metavar="NAME",
        help="test on the patients whom this ultrasound machine saw, and on no others, whatever --test_share; may be "
        "given several times. Their frames of other machines are in the test, too",
    )
    add("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    add("--patients_confirmed", action="store_true", help="you have checked that its patient ids are patients")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, out: Path) -> Prepared:
    """Copy a prepared dataset with its splits drawn again.

    Args:
      args: of the subcommand.
      out: folder for the copy.

    Raises:
      InputError: nobody knows the dataset's patients, no frame is of a machine that is named, the shares leave no
        patient for training, or the copy exists with other splits.
    """
    index = ScanIndex.from_dataset(args.dataset)
    info = open_dataset(index.path).info
    if info.config_name:
        raise InputError(f"{index.path} is simulated, with splits of its own. Use a dataset of recorded frames.")
    about = About.read(index.path)
    if not (about.confirmed or args.patients_confirmed or (about.kind == "own" and about.patients)):
        raise InputError(
            f"The patients of {index.path} are unknown. {about.apart} If its patient_id names patients, add "
            "--patients_confirmed."
        )
    tested = _patients_of(index, args.test_machine)
    draw = {"val_share": args.val_share, "test_share": 0.0 if tested else args.test_share, "seed": args.seed}
    others = {index.patient_names[at] for at in np.unique(index.patients)} - tested
    if not others:
        raise InputError(f"All patients have frames of {_listed(args.test_machine)}: none is left for training.")
    splits = draw_splits(others, _anatomies_of(index), **draw) | dict.fromkeys(tested, "test")
    if tested:
        draw["test_machines"] = sorted(set(args.test_machine))
    metadata = _metadata(info, index, about, draw, confirmed=args.patients_confirmed)
    target = out / info.name / str(info.version)
    if target.exists():
        _require_same(target, metadata)
        print(f"{target} is already prepared: nothing to do.")
        if about.kind == "own":
            store_patients(target, about.patients, confirmed=about.confirmed or args.patients_confirmed)
    else:
        _copy(index, info, np.array([splits[name] for name in index.patient_names]), metadata, out)
        said = _copy_private(index.path, target)
        metadata["notes"] += said
    copied = About.read(target)
    warning = [] if copied.confirmed or args.patients_confirmed else [f"warning: {copied.apart}"]
    return Prepared(target, [*metadata["notes"], *warning])


def _patients_of(index: ScanIndex, machines: Sequence[str]) -> set[str]:
    """Return the patients with a frame of any of these machines.

    Raises:
      InputError: no frame is of one of them.
    """
    known = frames_by_machine(index)
    if missing := [name for name in machines if name not in known]:
        there = ", ".join(f"{name!r} ({count:,})" for name, count in sorted(known.items()))
        raise InputError(f"No frame is of the machine {missing[0]!r}. The dataset has frames of {there}.")
    of_them = np.isin(index.machines, [index.machine_names.index(name) for name in machines])
    return {index.patient_names[at] for at in np.unique(index.patients[of_them])}


def _listed(names: Sequence[str]) -> str:
    return " or ".join(sorted(set(names)))


def _anatomies_of(index: ScanIndex) -> dict[str, set[Kind]]:
    """The anatomies of each patient with a label, as fine and coarse label."""
    shown: dict[str, set[Kind]] = defaultdict(set)
    triples = np.unique(np.stack([index.patients, index.fine, index.coarse], axis=1), axis=0)
    for patient, fine, coarse in triples.tolist():
        if max(fine, coarse) != UNLABELLED:
            shown[index.patient_names[patient]].add((fine, coarse))
    return shown


def _metadata(
    info: tfds.core.DatasetInfo, index: ScanIndex, about: About, draw: dict[str, Any], *, confirmed: bool
) -> dict[str, Any]:
    """Return the metadata of the copy: that of the dataset, with what the splits depend on."""
    metadata = dict(info.metadata or {})
    settings = {**metadata.get("settings", {}), **draw, "stratified": True, "resplit": index.fingerprint}
    kept = [note for note in metadata.get("notes", []) if not note.endswith(UNSPLIT)]
    said = f"Splits were drawn again by patient, with the seed {draw['seed']}."
    if machines := draw.get("test_machines"):
        said = (
            f"Test patients are those with frames of {_listed(machines)}; validation patients were drawn again with "
            f"the seed {draw['seed']}."
        )
    metadata |= {"settings": settings, "notes": [*kept, said]}
    if confirmed and about.kind == "own":
        metadata[PATIENTS] = patients_as_json(about.patients, confirmed=True)
    return metadata


def _require_same(target: Path, metadata: dict[str, Any]) -> None:
    try:
        was = (open_dataset(target).info.metadata or {}).get("settings")
    except InputError:
        was = None
    if was != metadata["settings"]:
        raise InputError(
            f"{target} exists with other splits, or of another dataset. Choose another --out, or delete it."
        )


def _copy(
    index: ScanIndex,
    info: tfds.core.DatasetInfo,
    split_of: Shaped[np.ndarray, " patients"],
    metadata: dict[str, Any],
    out: Path,
) -> None:
    size = sum(split.num_bytes for split in info.splits.values())
    parts, sizes = {}, {}
    for split in SPLITS:
        frames = np.flatnonzero(split_of[index.patients] == split)
        if frames.size:
            order = np.lexsort((frames, index.scans[frames], index.patients[frames]))  # as `ingest` writes them
            parts[split] = _parts(index, info, frames[order])
            sizes[split] = size * frames.size // len(index)
    copied: dict[str, Any] = {"name": info.name, "features": info.features, "like": info}
    builder = OwnScans(**copied, parts=parts, sizes=sizes, metadata=metadata, data_dir=out)
    try:
        prepare(builder, out)
    except (RuntimeError, ValueError, IndexError) as error:  # array_record raises whatever its C++ side does
        raise InputError(f"The records of {index.path} cannot be copied ({first_line(error)}).") from error


def _parts(index: ScanIndex, info: tfds.core.DatasetInfo, frames: Int[np.ndarray, " n"]) -> list[Part]:
    """Return where the records of these frames are, in this order."""
    files: list[Path] = []
    of_file, place = np.zeros(len(frames), np.int64), np.zeros(len(frames), np.int32)
    for number, name in enumerate(index.split_names):
        split = info.splits[name]
        ends = np.cumsum(split.shard_lengths)
        inside = index.splits[frames] == number
        records = index.records[frames[inside]]
        shard = np.searchsorted(ends, records, side="right")
        of_file[inside] = len(files) + shard
        place[inside] = records - (ends - split.shard_lengths)[shard]
        files += [Path(path) for path in split.filepaths]
    starts = np.flatnonzero(np.diff(of_file, prepend=-1))
    stops = np.append(starts[1:], len(frames))
    return [Part(files[of_file[a]], place[a:b]) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]


def _copy_private(source: Path, target: Path) -> list[str]:
    """Copy the private table of a dataset, if it has one, and return a sentence on it."""
    table = read_private_table(source)
    if table is None:
        return []
    try:
        write_private_table(target, table.to_batches())
    except OSError as error:
        return [f"warning: no private table of source files was written ({in_words(error)})."]
    return [f"{private_table_of(target)} lists the file of each frame: keep it private, it may name patients."]
