"""Features of frames: `python -m awcl_jax.embed RUN SOURCE --out=features.parquet`, or `load_encoder` in a program.

The frames are those of a prepared dataset, or of files that `awcl_jax.ingest` reads: pictures, clips and DICOM, in a
folder, listed in a table, or one alone.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from awcl_jax.embed.check import SUFFIXES, require_encoder
from awcl_jax.embed.options import FileOptions
from awcl_jax.ingest.own.reading_flags import add_clips, add_pictures, path_of, region_of
from awcl_jax.runtime.arguments import Parser
from awcl_jax.runtime.bucket import on_bucket
from awcl_jax.runtime.cli import exit_on_bad_input, require_name, silence_libraries
from awcl_jax.runtime.errors import InputError

if TYPE_CHECKING:
    from awcl_jax.embed.frames import Frames

Encoder = Callable[["Frames"], Float[np.ndarray, "b f"]]

BATCH_SIZE = 64
_LARGEST_BATCH = 2**20


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What `embed_frames` wrote.

    Attributes:
      frames: rows of the file.
      faults: row or file in the source -> reason, for each that could not be read.
      features: of each frame.
      files: of clips, DICOM or pictures that were read one after the other; 0 where each row of the source is a frame.
    """

    frames: int
    faults: dict[int, str]
    features: int
    files: int


def load_encoder(checkpoint: str | os.PathLike[str], *, colours: str | None = None) -> Encoder:
    """Load the encoder of a run, with its preprocessing.

    Example:
        encode = load_encoder("runs/20260101-120000-fine")
        features = encode(frames)

    Args:
      checkpoint: folder of a run (its latest checkpoint), of one of its checkpoints (`RUN/checkpoints/1000`), or of
        `awcl_jax.export`, as safetensors or for JAX. Each also on a bucket (`gs://BUCKET/FOLDER`);
        an export also on the Hugging Face hub (`hf://USER/NAME`, or `hf://USER/NAME@REVISION`).
      colours: order of the channels of frames in colour, `rgb` or `bgr`; None refuses them.

    Returns:
      A function from frames to features [b, f] in float32. Frames are an array [b, h, w] or [b, h, w, c] with 1 or 3
      channels, one frame without b, or a list of frames of any sizes; as uint8 from 0 to 255 or floats from 0 to 1.
      They are made square, and overlays masked, as in training; frames of your own scans you cut yourself, as with
      `awcl_jax.ingest --region`.

    Raises:
      InputError: there is no such run or checkpoint; raised by the function if frames have another shape, type or
        range, or colours without an order.
    """
    require_encoder(checkpoint)
    # Imported here and below, so that --help and bad arguments do not wait for JAX.
    from awcl_jax.embed import load

    return load.as_function(load.open_encoder(checkpoint), colours=colours)


def embed_frames(
    encoder: str | os.PathLike[str],
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str | None = None,
    batch_size: int = BATCH_SIZE,
    neighbours: int = 0,
    picture: str | os.PathLike[str] | None = None,
    projector: str | os.PathLike[str] | None = None,
    options: FileOptions | None = None,
    paths: bool = False,
) -> Embedded:
    """Write the features of frames, in their order, with the labels of each.

    The file has the column `id` (of the frame in a dataset, else the picture's path as in the source, and of a clip the
    path, `#` and the frame's number); `scan_id`, `patient_id`, `machine`, `anatomy` and `split` of a dataset, or all
    columns of the table that lists the files; for clips and DICOM `frame_number`, from 0; and `features`. With
    `neighbours`, it also has for each frame, the nearest first, `neighbour_ids`, `neighbour_cosines` and, if there is a
    `scan_id`, `neighbour_same_scan`: whether it is of the frame's own scan.

    With a key, which DICOM requires, no path and no id of yours is written: `id` is made from the frame's pixels, and
    `scan_id` and `patient_id` are hashes, all as `awcl_jax.ingest` makes them; other columns of a table are left out.

    What cannot be read is listed on stderr, one per line, and left out. Parquet and CSV are written batch by batch; an
    NPZ, and neighbours, need all features in memory.

    Args:
      encoder: as in `load_encoder`.
      source: as in `awcl_jax.embed.files.open_files`.
      out: output file, .parquet, .npz or .csv; it appears when it is complete.
      split: split of a prepared dataset; by default all.
      batch_size: frames encoded at a time, over all devices of this process.
      neighbours: number of nearest frames, by cosine, to list for each.
      picture: output PNG of some frames with their nearest neighbours; from other scans, if at least two are known.
      projector: output folder for an embedding viewer, see `awcl_jax.embed.projector`.
      options: how files are read; by default as `FileOptions()`.
      paths: add the columns `path` and `frame_number` from the private table of a dataset of your own scans
        (`awcl_jax.data.private_table`). They may name patients.

    Raises:
      InputError: encoder or source do not exist or are invalid; one of the outputs already exists; no frame could be
        read, or only one with `neighbours`; the features are not finite.
      OSError: a file cannot be written.
    """
    out = Path(out).expanduser()
    picture = None if picture is None else Path(picture).expanduser()
    _check(out, picture, batch_size=batch_size, neighbours=neighbours)
    projector = None if projector is None else Path(projector).expanduser()
    if projector is not None:
        _check_projector(projector, out, picture)
    require_encoder(encoder)
    from awcl_jax.embed.files import FileSource, cut_as_trained, open_files

    options = options or FileOptions()
    frames = open_files(source, split=split, options=options, paths=paths)
    from awcl_jax.embed import load, write

    frozen = load.open_encoder(encoder)
    frames = cut_as_trained(source, frames, options=options, region=frozen.region)

    origin = os.fspath(source) if on_bucket(source) else str(Path(source).expanduser().resolve())
    rows, features, faults = write.embed(
        frozen,
        frames,
        out,
        origin=origin,
        batch_size=batch_size,
        neighbours=neighbours,
        picture=picture,
        projector=projector,
    )
    return Embedded(rows, faults, features, len(frames) if isinstance(frames, FileSource) else 0)


def _check(out: Path, picture: Path | None, *, batch_size: int, neighbours: int) -> None:
    if out.suffix not in SUFFIXES:
        raise InputError(f"--out must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}; got {out}.")
    if picture is not None and picture.suffix != ".png":
        raise InputError(f"--picture must end in .png; got {picture}.")
    for file in (out, picture):
        if file is not None and file.exists():
            raise InputError(f"{file} already exists. Choose another name or delete it.")
    if not 1 <= batch_size <= _LARGEST_BATCH:
        raise InputError(f"--batch_size must be from 1 to {_LARGEST_BATCH:,} frames; got {batch_size}.")
    if neighbours < 0:
        raise InputError(f"--neighbours must be at least 0; got {neighbours}.")
    if picture is not None and not neighbours:
        raise InputError("--picture shows nearest neighbours: set their number with --neighbours=K.")


def _check_projector(projector: Path, out: Path, picture: Path | None) -> None:
    """Refuse a folder that could not be made, before hours of encoding."""
    if os.path.lexists(projector):
        raise InputError(f"{projector} already exists. Choose another --projector or delete it.")
    for flag, file in (("--out", out), ("--picture", picture)):
        if file is not None and projector.resolve() == file.resolve():
            raise InputError(f"--projector and {flag} must have different names; both are {file}. Rename one.")
    there = next(path for path in projector.absolute().parents if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"--projector={projector} must be a folder, but {there} is not one. Choose another.")


@exit_on_bad_input()
def main(argv: Sequence[str] | None = None) -> None:
    """Write features as the arguments specify."""
    args = _parser().parse_args(argv)
    for name in ("encoder", "source"):
        require_name(name.upper(), getattr(args, name))
    for flag in ("out", "picture", "projector"):
        require_name(f"--{flag}", getattr(args, flag))
    silence_libraries()
    begun = time.monotonic()
    done = embed_frames(
        args.encoder,
        args.source,
        args.out,
        split=args.split,
        batch_size=args.batch_size,
        neighbours=args.neighbours,
        picture=args.picture,
        projector=args.projector,
        paths=args.paths,
        options=FileOptions(**{field.name: getattr(args, field.name) for field in dataclasses.fields(FileOptions)}),
    )
    out = Path(args.out).expanduser()
    of_files = f" of {done.files - len(done.faults):,} file(s)" if done.files else ""
    print(
        f"{out}  {done.frames:,} frames{of_files}, {done.features:,} features each  "
        f"{out.stat().st_size / 1e6:.2f} MB  {time.monotonic() - begun:.0f} s"
    )
    if args.picture is not None:
        print(Path(args.picture).expanduser())
    if args.projector is not None:
        print(f"{args.projector}  (tensorboard --logdir {args.projector}, or load its files in an Embedding Projector)")
    if done.faults:
        left_out = (
            f"{len(done.faults):,} of {done.files:,} files"
            if done.files
            else f"{len(done.faults):,} of {done.frames + len(done.faults):,} frames"
        ) + " could not be read"
        if not args.skip_bad:
            raise InputError(f"{left_out} and are not in {out}. If that is acceptable, use --skip_bad.")
        print(f"{left_out} and were left out.")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m awcl_jax.embed",
        description="Write the features of frames from a trained encoder, with the labels of each frame. Frames are\n"
        "made square as in training. Files are read as by awcl_jax.ingest: use the flags that the dataset of the\n"
        "encoder was prepared with; of these, --region is known of the user's own scans.",
        epilog="examples:\n"
        "  python -m awcl_jax.embed runs/20260101-120000-fine data/fpdb --split=test --out=test.parquet\n"
        "  python -m awcl_jax.embed exported pictures --out=features.csv\n"
        "  python -m awcl_jax.embed exported clips --region=sector --out=features.npz\n"
        "  python -m awcl_jax.embed exported exams --key_file=KEY --out=features.parquet --neighbours=5 "
        "--picture=alike.png",
    )
    add = parser.add_argument
    add(
        "encoder",
        metavar="ENCODER",
        help="folder of a run, of one of its checkpoints (RUN/checkpoints/500), or of awcl_jax.export; "
        "also on a bucket (gs://BUCKET/FOLDER); an export also on the Hugging Face hub (hf://USER/NAME[@REVISION])",
    )
    add(
        "source",
        metavar="SOURCE",
        help="a prepared dataset, also on a bucket; a folder of pictures (png, jpg, bmp, tif, webp), clips (mp4, avi, "
        "mov, mpeg, gif, ...) and DICOM, including subfolders; one such file; or a table with a column path (a column "
        "region, x0 y0 x1 y1 in pixels, goes before --region; others are kept)",
    )
    add("--out", metavar="FILE", required=True, help="output file, .parquet, .npz or .csv")
    add("--split", metavar="NAME", help="split of a prepared dataset (default: all frames)")
    add(
        "--paths",
        action="store_true",
        help="add the file of each frame, from the private table of a dataset of your own scans; it may name patients",
    )
    add(
        "--batch_size",
        type=int,
        default=BATCH_SIZE,
        metavar="N",
        help="number of frames encoded at a time (default: %(default)s)",
    )
    add(
        "--neighbours",
        type=int,
        default=0,
        metavar="K",
        help="for each frame, list the K frames with the nearest features and whether they are of the same scan; needs "
        "all features in memory",
    )
    add(
        "--picture",
        metavar="FILE",
        help="output PNG of some frames with their nearest neighbours, from other scans if at least two are known",
    )
    add(
        "--projector",
        metavar="FOLDER",
        help="output folder for TensorFlow's Embedding Projector: features, labels and a small picture of each frame "
        "(of at most 10,000, evenly spread)",
    )
    add("--skip_bad", action="store_true", help="exit with status 0 even if some files could not be read")
    add(
        "--region",
        type=region_of,
        metavar="REGION",
        help="part of a picture to keep, and to cut it to: whole, frame (the sector of each frame), sector (clips: "
        "what moves), tag (DICOM: its regions) or X0,Y0,X1,Y1 in pixels; several are tried in order (default: as the "
        "encoder's training frames, if they are of your own scans; else tag of DICOM, and whole)",
    )
    add_pictures(parser)
    add_clips(parser)
    add(
        "--key_file",
        type=path_of,
        metavar="FILE",
        help="key to hash ids with, as in ingest (default: $AWCL_ID_KEY, for clips and DICOM): no path and no id of "
        "yours is written; DICOM needs one",
    )
    return parser
