"""The flags of the subcommands of `python -m awcl_jax.ingest` that take a researcher's own scans."""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

from awcl_jax.ingest.own import command as ingest_own
from awcl_jax.ingest.own import folder
from awcl_jax.ingest.own.items import Listing, Reading
from awcl_jax.ingest.own.labels import BUILT_IN
from awcl_jax.ingest.own.privacy import KEY_VARIABLE, Pseudonyms


def add_subcommands(datasets: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `manifest`, `folder`, `video` and `dicom` to the datasets that can be prepared."""
    parser = _add(
        datasets,
        "manifest",
        "images that a table names, with their scans and labels",
        "A row of the table (.csv or .parquet) is an image (png, jpg, bmp, tif). Its columns:\n"
        "  path, scan_id                      must be there; paths are relative to the table's folder, or to --root\n"
        "  patient_id                         else each scan is of a patient of its own\n"
        "  anatomy                            empty where nothing, or nothing known, is shown\n"
        "  split                              train, val or test; else patients are drawn\n"
        "  frame                              number of the image in its scan; else rows are in order\n"
        "  mask, pixel_mm, machine            a mask's path, the edge of a pixel in millimetres, the machine",
        "manifest --source=scans.csv --out=data/own",
        ingest_own.list_manifest,
    )
    parser.add_argument(
        "--mask_names", type=_names, default=(), metavar="NAME,...", help="what mask values 0, 1, ... mean"
    )
    _add_table(parser)

    parser = _add(
        datasets,
        "folder",
        "images in folders of classes, DIR/class/.../image",
        "The first folder under --source is what an image shows. Which images are of one patient is told by the\n"
        "folders under the class (DIR/4CH/patient7/scan1/a.png) or by the beginning of the file's name\n"
        "(DIR/4CH/patient7_a.png), across classes. Look at the counts at the end: with as many patients as\n"
        "images, one patient may be trained and tested on.",
        "folder --source=DIR --scan_from=folder --out=data/own",
        ingest_own.list_folder,
    )
    parser.add_argument(
        "--scan_from",
        choices=folder.SCAN_FROM,
        default="auto",
        help="what names a scan: the folders under the class (the first is the patient), or the stem of the file's "
        "name; auto: folders where every image has some, stems where none has (default: %(default)s)",
    )
    parser.add_argument(
        "--pattern",
        default=folder.PATTERN,
        metavar="REGEX",
        help="of the stem, with groups (?P<scan>) and (?P<patient>) (default: %(default)s, up to the first - or _)",
    )

    parser = _add(
        datasets,
        "video",
        "clips (mp4, avi, mov, mpeg, ...) in a folder or a table, each a scan",
        "Of each clip every n-th frame is taken, and none that shows what the last one showed. In a folder, the first\n"
        "folder under --source is the patient. A table has the columns path and, where they are known, scan_id,\n"
        "patient_id, anatomy, split, machine and pixel_mm.",
        "video --source=videos.csv --every=8 --out=data/own",
        ingest_own.list_videos,
    )
    _add_table(parser)
    _add_clips(parser)

    parser = _add(
        datasets,
        "dicom",
        "DICOM of ultrasound, without anything that names a patient",
        "Nothing is read but the pixels and a written list of tags (own/privacy.py). PatientID and StudyInstanceUID\n"
        "become hashes, for which a key is needed: openssl rand -hex 32 > KEY. Outside of the sector, where names are\n"
        "burnt in, pictures become black. No name of a file is kept or said. ingest_report.json lists, by tag, what\n"
        "was dropped. Labels come from a table with the columns path, anatomy and split; scan_id and patient_id\n"
        "there go before the file's own.",
        "dicom --source=DIR --key_file=KEY --out=data/own",
        ingest_own.list_dicom,
    )
    _add_root(parser)
    _add_clips(parser)
    parser.add_argument(
        "--patient_from",
        choices=("tag", "study", "folder"),
        default="tag",
        help="what tells patients apart: PatientID, the examination, or the first folder under --source "
        "(default: %(default)s)",
    )
    parser.add_argument("--show_paths", action="store_true", help="name files by path in messages, not by hash")
    parser.set_defaults(region="tag")


def _add(
    datasets: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    more: str,
    example: str,
    lister: Callable[[argparse.Namespace, Pseudonyms], Listing],
) -> argparse.ArgumentParser:
    parser = datasets.add_parser(
        name,
        help=f"your own: {text}",
        description=f"Prepare {text}.\n\n{more}",
        epilog=f"example: python -m awcl_jax.ingest {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--source", type=_path, required=True, metavar="PATH", help="the folder or table")
    add("--name", type=_name, default="own_scans", help="of the dataset (default: %(default)s)")
    add(
        "--taxonomy",
        type=_path,
        metavar="FILE",
        help="what the names of anatomies mean, as TOML or YAML with the tables planes (fine = coarse) and aliases "
        f"(name = fine) and the list unlabelled; or {', '.join(BUILT_IN)} (default: each name is an anatomy)",
    )
    add("--key_file", type=_path, metavar="FILE", help=f"key that ids are hashed with (default: ${KEY_VARIABLE})")
    add("--test_share", type=float, default=0.2, metavar="S", help="of patients, where no split is given (%(default)s)")
    add("--val_share", type=float, default=0.1, metavar="S", help="of patients, where no split is given (%(default)s)")
    add("--seed", type=int, default=0, help="of that draw (default: %(default)s)")
    add("--skip_bad", action="store_true", help="leave out what cannot be used, and prepare the rest")
    add("--workers", type=_count, default=_processors(), metavar="N", help="processes that decode (%(default)s)")
    add("--max_pixels", type=_count, default=Reading.max_pixels, metavar="N", help="of a picture (%(default)s)")
    add("--window", type=_window, metavar="LOW,HIGH", help="values that become black and white, of deeper pictures")
    regions = ", ".join(
        f"{region} ({meaning})" for region, meaning in ingest_own.REGIONS[ingest_own.KINDS[name]].items()
    )
    add(
        "--region",
        type=_region,
        default="whole",
        metavar="REGION",
        help=f"what is kept, black outside: {regions}, or X0,Y0,X1,Y1 in pixels (default: %(default)s)",
    )
    parser.set_defaults(run=ingest_own.run, command=name, list_source=lister, keep_ids=False)
    return parser


def _add_table(parser: argparse.ArgumentParser) -> None:
    _add_root(parser)
    parser.add_argument("--keep_ids", action="store_true", help="store scan_id and patient_id as the table has them")


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=_path, metavar="DIR", help="folder of a table's paths (default: the table's)")


def _add_clips(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--every", type=_count, default=Reading.every, help="take each n-th frame (default: %(default)s)"
    )
    parser.add_argument(
        "--near_duplicate",
        type=float,
        default=Reading.near_duplicate,
        metavar="LEVELS",
        help="drop a frame whose 32 x 32 average differs less from the last one, in grey levels (default: %(default)s)",
    )


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", text):
        raise argparse.ArgumentTypeError(f"small letters, digits and _, from a letter on; got {text!r}")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1; got {text!r}")
    return int(text)


def _window(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise argparse.ArgumentTypeError(f"two numbers, the lower first; got {text!r}")
    return low, high


def _region(text: str) -> str | tuple[int, int, int, int]:
    if text in ("whole", "sector", "tag"):
        return text
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"whole, sector, tag or X0,Y0,X1,Y1; got {text!r}")
    x0, y0, x1, y1 = (int(part) for part in parts)
    if x0 >= x1 or y0 >= y1:
        raise argparse.ArgumentTypeError(f"X0 < X1 and Y0 < Y1; got {text!r}")
    return x0, y0, x1, y1
