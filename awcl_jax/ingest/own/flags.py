"""Flags of the subcommands of `python -m awcl_jax.ingest` that read your own scans."""

import argparse
import os
import re
from collections.abc import Callable

from awcl_jax.data.square import ASPECTS
from awcl_jax.ingest.own import command as ingest_own
from awcl_jax.ingest.own import folder, listers
from awcl_jax.ingest.own.items import REGIONS, Listing
from awcl_jax.ingest.own.labels import BUILT_IN
from awcl_jax.ingest.own.privacy import KEY_VARIABLE, Pseudonyms
from awcl_jax.ingest.own.reading_flags import add_clips, add_pictures, count_of, path_of, region_of
from awcl_jax.runtime.arguments import Parser

_LONG = {"scan": "scan_id", "patient": "patient_id"}
"""Short names of columns in `--columns`."""


_SEVERAL = {"image": "frame,whole", "video": "sector,frame", "dicom": "tag,sector,frame"}
"""Kind of a file -> an example of regions in `--region`."""


def add_subcommands(datasets: "argparse._SubParsersAction[Parser]") -> None:
    """Add `manifest`, `folder`, `video` and `dicom` to the datasets that can be prepared."""
    parser = _add(
        datasets,
        "manifest",
        "images listed in a table, with their scans and labels",
        "Each row of the table (.csv, .parquet or .xlsx) is an image (png, jpg, bmp, tif, webp). Columns:\n"
        "  path, scan_id                      required; paths are relative to the table's folder, or to --root\n"
        "  patient_id                         without it, each scan counts as a separate patient\n"
        "  anatomy                            empty if unknown or none\n"
        "  split                              train, val or test; without it, patients are split at random\n"
        "  frame                              number of the image in its scan; by default the order of rows\n"
        "  mask, pixel_mm, machine            path of a mask, edge of a pixel in millimetres, machine\n"
        "  region                             rectangle to keep, x0 y0 x1 y1 in pixels, instead of --region\n"
        "An empty cell of anatomy, split, machine, pixel_mm or region is unknown; the others must be filled.",
        "manifest --source=scans.csv --out=data/own",
        listers.list_manifest,
    )
    parser.add_argument(
        "--mask_names", type=_names, default=(), metavar="NAME,...", help="what mask values 0, 1, ... mean"
    )
    _add_table(parser)

    parser = _add(
        datasets,
        "folder",
        "images in folders of classes, DIR/class/.../image",
        "The first folder under --source names the anatomy. The patient comes from the folders under the class\n"
        "(DIR/4CH/patient7/scan1/a.png) or from the start of the file name (DIR/4CH/patient7_a.png), across\n"
        "classes. Check the counts at the end: if there are as many patients as images, images of one patient\n"
        "may be in both training and test.",
        "folder --source=DIR --scan_from=folder --out=data/own",
        listers.list_folder,
    )
    parser.add_argument(
        "--scan_from",
        choices=folder.SCAN_FROM,
        default="auto",
        help="where the scan's name comes from: the folders under the class (the first is the patient), or the stem of "
        "the file name; auto: stems with --pattern, else folders if every image has some, stems if none has (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--pattern",
        metavar="REGEX",
        help="regular expression for the stem, with groups (?P<scan>) and (?P<patient>); folders then say nothing of "
        f"scans and patients (default: {folder.PATTERN}, up to the first - or _)",
    )

    _add_labels(parser)
    _add_columns(parser)

    parser = _add(
        datasets,
        "video",
        "clips (mp4, avi, mov, mpeg, ...) in a folder or a table, each a scan",
        "Keep every n-th frame of each clip, without near duplicates of the last one kept. In a folder, the first\n"
        "folder under --source is the patient. A table has the column path and optionally scan_id, patient_id,\n"
        "anatomy, split, machine and pixel_mm.",
        "video --source=videos.csv --every=8 --out=data/own",
        listers.list_videos,
    )
    _add_table(parser)
    _add_labels(parser)
    add_clips(parser)
    parser.add_argument(
        "--pattern",
        metavar="REGEX",
        help="of the stem of clips in a folder, with groups (?P<patient>) and (?P<scan>)",
    )

    parser = _add(
        datasets,
        "dicom",
        "ultrasound DICOM, without anything that identifies a patient",
        "Only the pixels and a fixed list of tags (own/privacy.py) are read. PatientID and StudyInstanceUID are\n"
        "hashed with a key; make one with `(umask 077; openssl rand -hex 32 > KEY)`. Pictures are cut to the sector,\n"
        "black beside it, because names are burnt in around it. File names are neither stored nor printed.\n"
        "ingest_report.json lists the dropped tags. Labels come from a table beside the folder (--labels), or instead\n"
        "of it with the columns path, anatomy, split and region; its scan_id and patient_id replace those of the file.",
        "dicom --source=DIR --key_file=KEY --out=data/own",
        listers.list_dicom,
    )
    _add_root(parser)
    _add_labels(parser)
    add_clips(parser)
    parser.add_argument(
        "--patient_from",
        choices=("tag", "study", "folder"),
        default="tag",
        help="what identifies a patient: PatientID, the examination, or the first folder under --source "
        "(default: %(default)s)",
    )
    parser.add_argument("--show_paths", action="store_true", help="show paths instead of hashes in messages")
    parser.set_defaults(region="tag")


def _add(
    datasets: "argparse._SubParsersAction[Parser]",
    name: str,
    text: str,
    more: str,
    example: str,
    lister: Callable[[argparse.Namespace, Pseudonyms], Listing],
) -> Parser:
    parser = datasets.add_parser(
        name,
        help=f"your {text}",
        description=f"Prepare {text}.\n\n{more}",
        epilog=f"example: python -m awcl_jax.ingest {example}",
    )
    add = parser.add_argument
    add("--source", type=path_of, required=True, metavar="PATH", help="folder or table")
    add("--name", type=_name, default="own_scans", help="name of the dataset (default: %(default)s)")
    add(
        "--taxonomy",
        type=path_of,
        metavar="FILE",
        help="what anatomy names mean: TOML or YAML with the tables planes (fine = coarse) and aliases (name = fine) "
        f"and the list unlabelled; or {', '.join(BUILT_IN)} (default: each name is an anatomy)",
    )
    add("--key_file", type=path_of, metavar="FILE", help=f"key to hash ids with (default: ${KEY_VARIABLE})")
    add("--test_share", type=float, default=0.2, metavar="S", help="test share of patients, if not split (%(default)s)")
    add("--val_share", type=float, default=0.1, metavar="S", help="validation share, likewise (%(default)s)")
    add("--seed", type=int, default=0, help="of the random split (default: %(default)s)")
    add(
        "--patients_confirmed",
        action="store_true",
        help="you have checked the line `Patients: ...`; otherwise pages do not claim that a guess from file names "
        "keeps patients apart",
    )
    add("--skip_bad", action="store_true", help="skip files that cannot be used and prepare the rest")
    add(
        "--keep_paths",
        action=argparse.BooleanOptionalAction,
        help="list the file of each frame in OUT.private/NAME.parquet, beside --out and readable only by you; "
        "--no-keep_paths deletes the list of an earlier command "
        f"(default: {'no' if name == 'dicom' else 'yes'})",
    )
    add("--workers", type=count_of, default=_processors(), metavar="N", help="decoding processes at most (%(default)s)")
    add_pictures(parser)
    regions = ", ".join(f"{region} ({meaning})" for region, meaning in REGIONS[ingest_own.KINDS[name]].items())
    add(
        "--region",
        type=region_of,
        default="whole",
        metavar="REGION",
        help=f"part to keep; the picture is cut to it: {regions}, or X0,Y0,X1,Y1 in pixels. Several, such as "
        f"{_SEVERAL[ingest_own.KINDS[name]]}, are tried in order (default: %(default)s)",
    )
    add(
        "--aspect",
        choices=ASPECTS,
        help="how a run makes frames square: letterbox keeps the aspect ratio, with black bars; squash does not "
        "(default: letterbox)",
    )
    parser.set_defaults(run=ingest_own.run, command=name, list_source=lister, keep_ids=False)
    return parser


def _add_labels(parser: Parser) -> None:
    parser.add_argument(
        "--labels",
        type=path_of,
        metavar="TABLE",
        help="table beside a folder, with path and any of anatomy, scan_id, patient_id, split, machine, pixel_mm and "
        "region; path names a file by its path below --source or, where only one fits, by its name",
    )


def _add_columns(parser: Parser) -> None:
    parser.add_argument(
        "--columns",
        type=_columns,
        default={},
        metavar="NAME=COLUMN,...",
        help='columns of the table that have other names, such as path=File,patient_id="Patient ID"',
    )


def _add_table(parser: Parser) -> None:
    _add_root(parser)
    parser.add_argument("--keep_ids", action="store_true", help="store scan_id and patient_id unchanged")


def _add_root(parser: Parser) -> None:
    _add_columns(parser)
    parser.add_argument("--root", type=path_of, metavar="DIR", help="folder of a table's paths (default: the table's)")


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _columns(text: str) -> dict[str, str]:
    columns: dict[str, str] = {}
    rest = text
    while rest:
        pair = re.match(r"""\s*(\w+)\s*=\s*("[^"]+"|'[^']+'|[^,"']+)\s*(?:,|$)""", rest)
        if pair is None or (name := _LONG.get(pair[1], pair[1])) in columns:
            raise argparse.ArgumentTypeError(f"must be NAME=COLUMN,..., each name once; got {text!r}")
        columns[name] = pair[2].strip().strip("\"'")
        rest = rest[pair.end() :]
    return columns


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", text):
        raise argparse.ArgumentTypeError(
            f"must be lower-case letters, digits and _, beginning with a letter; got {text!r}"
        )
    return text
