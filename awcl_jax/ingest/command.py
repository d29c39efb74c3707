"""Prepare a dataset: `python -m awcl_jax.ingest fetal_planes_db --source=DIR --out=DIR`.

The result is TFDS records, which every other command reads. A summary is printed at the end.
"""

import argparse
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import phantom, resplit
from awcl_jax.ingest.own import flags as ingest_own_flags
from awcl_jax.ingest.prepare import make_builder, prepare, require_apart
from awcl_jax.ingest.public.fetal_planes_db import CSV_NAME
from awcl_jax.ingest.public.folder import FolderBuilder
from awcl_jax.runtime.arguments import Parser
from awcl_jax.runtime.cli import exit_on_bad_input, require_name
from awcl_jax.runtime.errors import InputError

_PATHS = ("out", "source", "masks", "patients", "csv", "dataset")
"""Flags that name a file or folder, of the commands that have them; those of own scans check them as they are read."""


@exit_on_bad_input()
def main(argv: Sequence[str] | None = None) -> None:
    """Prepare the dataset that the arguments name and print what is in it."""
    args = _parser().parse_args(argv)
    for flag in _PATHS:
        value = getattr(args, flag, None)
        require_name(f"--{flag}", None if value is None else str(value))
    out = Path(args.out).expanduser()
    _require_folder(out)
    if "run" in args:
        done = args.run(args, out)
        index = ScanIndex.from_dataset(done.path)
        print(summarize(index, [*done.notes, *unshown(index)]))
        return
    builder = args.make_builder(args, out)
    if _is_prepared(builder):
        print(f"{builder.data_dir} is already prepared: nothing to do.")
    else:
        for flag in getattr(args, "folders", ()):
            require_apart(out, getattr(args, flag), flag)
        prepare(builder, out)
    print(summarize(ScanIndex.from_dataset(builder.data_dir), _skipped(builder)))


def _require_folder(out: Path) -> None:
    """Check that a folder exists or can be made.

    Raises:
      InputError: it or one that it is in is a file.
    """
    there = next((path for path in (out, *out.parents) if os.path.lexists(path)), None)
    if there is not None and not there.is_dir():
        raise InputError(f"--out={out} must be a folder, but {there} is not one. Choose another.")


def summarize(index: ScanIndex, skipped: Sequence[str] = ()) -> str:
    """Return a table of frames, scans, patients and anatomies by split.

    Args:
      index: the labels of a dataset.
      skipped: sentences on what was left out.

    Returns:
      Lines of text; the last names the folder to train on.
    """
    in_split = [index.splits == split for split in range(len(index.split_names))]
    columns = [*in_split, np.ones(len(index), bool)]
    rows = [("", [*index.split_names, "total"])]
    rows.append(("frames", [_count(column) for column in columns]))
    for title, ids in (("scans", index.scans), ("patients", index.patients)):
        rows.append((title, [f"{np.unique(ids[column]).size:,}" for column in columns]))
    rows.extend((title, [_count(column & frames) for column in columns]) for title, frames in _anatomies(index))
    first = max(len(title) for title, _ in rows)
    widths = [max(len(cells[column]) for _, cells in rows) for column in range(len(columns))]
    table = [
        "  ".join(
            [title.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))]
        ).rstrip()
        for title, cells in rows
    ]
    return "\n".join(["", *table, "", *skipped, f"Train on it with --config.data.path={index.path}"])


def unshown(index: ScanIndex) -> list[str]:
    """Sentences on the anatomies that a split does not show, where another does."""
    granularity = "fine" if (index.fine != UNLABELLED).any() else "coarse"
    labels, names = index.labels(granularity), index.fine_names if granularity == "fine" else index.coarse_names
    known = set(labels.tolist()) - {UNLABELLED}
    remedy = "Label more patients, or set the splits in a column `split`."
    lines = []
    for split, name in enumerate(index.split_names):
        absent = sorted(known - set(labels[index.splits == split].tolist()))
        patients = {kind: len(np.unique(index.patients[labels == kind])) for kind in absent}
        if absent == sorted(known) and known:
            lines.append(f"warning: {name} has no labelled frame, so a run cannot score an encoder. {remedy}")
        elif absent:
            listed = ", ".join(f"{names[kind]} (of {patients[kind]:,} patient(s) in all)" for kind in absent)
            lines.append(f"warning: {name} shows no {listed}. {remedy}")
    return lines


def _anatomies(index: ScanIndex) -> Iterator[tuple[str, Bool[np.ndarray, " n"]]]:
    """Yield each coarse anatomy, followed by its fine ones, with its frames; without those that have no frame."""
    for coarse, name in enumerate([*index.coarse_names, "no anatomy"]):
        of_group = index.coarse == (coarse if coarse < len(index.coarse_names) else UNLABELLED)
        if not of_group.any():
            continue
        yield name, of_group
        fine = np.unique(index.fine[of_group]).tolist()
        names = [index.fine_names[anatomy] if anatomy != UNLABELLED else "no fine anatomy" for anatomy in fine]
        if names not in ([name], ["no fine anatomy"]):
            for anatomy, fine_name in zip(fine, names, strict=True):
                yield f"  {fine_name}", of_group & (index.fine == anatomy)


def _count(frames: Bool[np.ndarray, " n"]) -> str:
    return f"{int(frames.sum()):,}"


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Return whether the dataset exists with these settings.

    Raises:
      InputError: it exists with other settings, or is incomplete.
    """
    folder = Path(builder.data_dir)
    if not folder.exists():
        return False
    remedy = "Choose another --out, or delete that folder."
    if not builder.is_prepared():
        raise InputError(f"{folder} exists but is not a complete dataset. {remedy}")
    if not isinstance(builder, FolderBuilder):
        return True  # a phantom's preset is part of its folder
    was = builder.info.metadata.get("settings", {})
    # Without a source, the download is not checked again: only settings from flags are compared.
    now = builder.settings(builder.source) if builder.source else builder.flags()
    compared = [name for name in now if name in was or name not in builder.ADDED]
    if changed := [name for name in compared if was.get(name) != now[name]]:
        listed = "; ".join(f"{name} was {was.get(name)} and is now {now[name]}" for name in changed)
        raise InputError(f"{folder} was prepared with other settings: {listed}. {remedy}")
    return True


def _skipped(builder: tfds.core.DatasetBuilder) -> list[str]:
    """Return sentences on the frames that were left out, and on those of unknown size."""
    metadata = builder.info.metadata or {}
    skipped = metadata.get("skipped", {})
    why = {"missing": "a file is missing", "broken": "a file is broken, empty or does not fit"}
    sentences = [
        f"Skipped {len(skipped[kind]):,} frame(s) because {reason}, the first {skipped[kind][0]}."
        for kind, reason in why.items()
        if skipped.get(kind)
    ]
    if unknown := metadata.get("unknown_size"):
        sentences.append(
            f"The pixel size of {len(unknown):,} frame(s) with masks is unknown, the first {unknown[0]}. They can be "
            "compared as shapes (Dice), not in millimetres."
        )
    return sentences


def _from_folder(args: argparse.Namespace, out: Path) -> tfds.core.DatasetBuilder:
    folders = {
        name: None if getattr(args, name) is None else Path(getattr(args, name)).expanduser() for name in args.folders
    }
    flags = {name: getattr(args, name) for name in args.flags}
    return make_builder(args.dataset, data_dir=out, **folders, **flags)


def _phantom(args: argparse.Namespace, out: Path) -> tfds.core.DatasetBuilder:
    if args.preset not in phantom.Phantom.builder_configs:
        raise InputError(f"--preset must be one of {', '.join(phantom.Phantom.builder_configs)}; got {args.preset!r}.")
    return phantom.Phantom(config=args.preset, data_dir=out, file_format="array_record")


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Help text of a dataset prepared from a folder.

    Attributes:
      help: content, source and licence.
      holds: content of the folder.
      csv: name of its CSV, if another can be chosen.
      masks: content of the folder of masks, if that is separate.
      download: its size, if it is downloaded without --source.
      split: whether a table may name patients, and frames may be split by them.
    """

    help: str
    holds: str
    csv: str | None = None
    masks: str | None = None
    download: str | None = None
    split: bool = False


_LAYOUTS = {
    "fetal_planes_db": _Layout(
        "maternal-fetal screening frames (Burgos-Artizzu et al. 2020, CC BY 4.0)",
        "Images/ and the CSV",
        csv=CSV_NAME,
        download="2 GB",
    ),
    "fetal_head_biometry": _Layout(
        "brains of FETAL_PLANES_DB with masks (Alzubaidi et al. 2023, CC BY 4.0)",
        "Images/ and the CSV of FETAL_PLANES_DB",
        csv=CSV_NAME,
        masks="masks named after the frames",
        download="2 GB",
    ),
    "hc18": _Layout(
        "fetal heads with masks and circumference (van den Heuvel et al. 2018, CC BY 4.0)",
        "training_set/ and its CSV",
    ),
    "camus": _Layout(
        "adult hearts with masks of chambers and wall (Leclerc et al. 2019, CC BY-NC-SA 4.0)",
        "database_nifti/ and database_split/",
    ),
    "echonet_dynamic": _Layout(
        "adult hearts with masks of the left ventricle (Ouyang et al. 2020, research use)",
        "FileList.csv, VolumeTracings.csv and Videos/",
    ),
    "busi": _Layout(
        "breasts with masks of lesions (Al-Dhabyani et al. 2020)",
        "benign/, malignant/ and normal/",
    ),
    "usgra": _Layout("nerves and vessels with masks (USGRA_SEG, CC BY 4.0)", "train/ and test/"),
    "ultrabench": _Layout(
        "a set of the benchmark UltraBench (Tupper and Gagné 2025)",
        "train.json, validation.json and test.json, such as pocus_v1.0.1",
        split=True,
    ),
}


def _parser() -> Parser:
    parser = Parser(
        prog="python -m awcl_jax.ingest",
        description="Prepare a dataset for training: frames, their scans, patients, anatomy and masks, from your\n"
        "images, videos or DICOM files, from a public dataset, or from a simulated phantom.",
        epilog="examples:\n"
        "  python -m awcl_jax.ingest folder --source=pictures --out=data/own\n"
        "  python -m awcl_jax.ingest dicom --source=scans --key_file=KEY --out=data/own\n"
        "  python -m awcl_jax.ingest phantom --out=data/phantom\n\n"
        "`python -m awcl_jax.ingest DATASET --help` describes each.",
    )
    datasets = parser.add_subparsers(title="datasets", required=True, metavar="DATASET")
    ingest_own_flags.add_subcommands(datasets)
    for name, layout in _LAYOUTS.items():
        _add_layout(datasets, name, layout)
    resplit.add_subcommand(datasets)
    command = datasets.add_parser(
        "phantom",
        help="simulated scans of fetuses or hearts, with masks; nothing to download",
        description="Make the phantom: simulated scans of fourteen fetal planes, or of adult hearts, with masks.",
        epilog="example: python -m awcl_jax.ingest phantom --out=data/phantom",
    )
    command.add_argument(
        "--preset", default="default", help="default, tiny, heart or heart_tiny (default: %(default)s)"
    )
    command.set_defaults(make_builder=_phantom)
    for dataset in datasets.choices.values():
        dataset.add_argument("--out", metavar="DIR", required=True, help="folder for the prepared dataset")
    return parser


def _add_layout(datasets: "argparse._SubParsersAction[Parser]", name: str, layout: _Layout) -> None:
    download = f", or download it ({layout.download})" if layout.download else ""
    more = " --masks=MASKS" if layout.masks else ""
    folder = "pocus_v1.0.1" if layout.split else name.upper()
    parser = datasets.add_parser(
        name,
        help=layout.help,
        description=f"Prepare {name.upper()} from a folder in the publisher's layout{download}.",
        epilog=f"example: python -m awcl_jax.ingest {name} --source={folder}{more} --out=data/{name}",
    )
    otherwise = " (default: download)" if layout.download else ""
    parser.add_argument("--source", metavar="DIR", help=f"folder with {layout.holds}{otherwise}")
    if layout.masks:
        parser.add_argument("--masks", metavar="DIR", help=f"folder with {layout.masks}")
    if layout.csv:
        parser.add_argument(
            "--csv", metavar="NAME", default=layout.csv, help="the CSV in --source (default: %(default)s)"
        )
    if layout.split:
        parser.add_argument(
            "--patients", metavar="CSV", help="table of the patient of each source (columns source, patient)"
        )
        parser.add_argument(
            "--split",
            default="published",
            help="published, or patient to split by patient (default: %(default)s)",
        )
    parser.add_argument("--skip_missing", action="store_true", help="skip frames that lack a file")
    parser.add_argument(
        "--skip_broken", action="store_true", help="skip frames with a file that is broken, empty or does not fit"
    )
    parser.set_defaults(
        make_builder=_from_folder,
        dataset=name,
        folders=("source", *["masks"] * bool(layout.masks), *["patients"] * layout.split),
        flags=(*["csv"] * bool(layout.csv), *["split"] * layout.split, "skip_missing", "skip_broken"),
    )
