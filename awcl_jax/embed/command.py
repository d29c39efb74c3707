"""Features of frames: `python -m awcl_jax.embed RUN SOURCE --out=features.parquet`, or `load_encoder` in a program.

The frames are those of a prepared dataset, a folder of pictures, one picture, or the files that a table names.
"""

import argparse
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from awcl_jax.runtime.bucket import on_bucket
from awcl_jax.runtime.cli import exit_on_bad_input, require_name
from awcl_jax.runtime.errors import InputError

Encoder = Callable[[np.ndarray], Float[np.ndarray, "b f"]]

BATCH_SIZE = 64
SUFFIXES = (".parquet", ".npz")


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What `embed_frames` wrote.

    Attributes:
      frames: rows of the file.
      faults: row in the source -> reason, for each frame that could not be read.
    """

    frames: int
    faults: dict[int, str]


def load_encoder(checkpoint: str | os.PathLike[str]) -> Encoder:
    """Load the encoder of a run, with its preprocessing.

    Example:
        encode = load_encoder("runs/20260101-120000-fine")
        features = encode(frames)

    Args:
      checkpoint: folder of a run (its latest checkpoint), of one of its checkpoints (`RUN/checkpoints/1000`), or of
        `awcl_jax.export`, as safetensors or for JAX. Each also on a bucket (`gs://BUCKET/FOLDER`); an export also on
        the Hugging Face hub (`hf://USER/NAME`, or `hf://USER/NAME@REVISION`).

    Returns:
      A function from grey frames, [b, h, w] or [b, h, w, 1], as uint8 from 0 to 255 or floats from 0 to 1, to features
      [b, f] in float32. Frames are resized, and overlays masked, as in training.

    Raises:
      InputError: there is no such run or checkpoint; raised by the function if frames have another shape or range.
    """
    # Imported here and below, so that --help and bad arguments do not wait for JAX.
    from awcl_jax.embed import load

    return load.as_function(load.open_encoder(checkpoint))


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
) -> Embedded:
    """Write the features of frames, in their order, with the labels of each.

    The file has the column `id` (of the frame in a dataset, else the picture's path as in the source); `scan_id`,
    `patient_id`, `machine`, `anatomy` and `split` of a dataset, or all columns of the table that lists the pictures;
    and `features`. With `neighbours`, it also has for each frame, the nearest first, `neighbour_ids`,
    `neighbour_cosines` and, if there is a `scan_id`, `neighbour_same_scan`: whether it is of the frame's own scan.

    Frames that cannot be read are listed on stderr, one per line, and left out. A Parquet file is written batch by
    batch; an NPZ, and neighbours, need all features in memory.

    Args:
      encoder: as in `load_encoder`.
      source: as in `awcl_jax.data.sources.open_source`.
      out: output file, .parquet or .npz; it appears when it is complete.
      split: split of a prepared dataset; by default all.
      batch_size: frames encoded at a time, over all devices of this process.
      neighbours: number of nearest frames, by cosine, to list for each.
      picture: output PNG of some frames with their nearest neighbours from other scans.
      projector: output folder for an embedding viewer, see `awcl_jax.embed.projector`.

    Raises:
      InputError: encoder or source do not exist or are invalid; one of the outputs already exists; no frame could be
        read, or only one with `neighbours`; the features are not finite.
      OSError: a file cannot be written.
    """
    source = os.fspath(source) if on_bucket(source) else Path(source).expanduser()
    out = Path(out).expanduser()
    picture = None if picture is None else Path(picture).expanduser()
    projector = None if projector is None else Path(projector).expanduser()
    _check(source, out, picture, batch_size=batch_size, neighbours=neighbours)
    if projector is not None and projector.exists():
        raise InputError(f"{projector} already exists. Choose another --projector or delete it.")
    from awcl_jax.embed import load, write

    rows, faults = write.embed(
        load.open_encoder(encoder),
        source,
        out,
        split=split,
        batch_size=batch_size,
        neighbours=neighbours,
        picture=picture,
        projector=projector,
    )
    return Embedded(rows, faults)


def _check(source: str | Path, out: Path, picture: Path | None, *, batch_size: int, neighbours: int) -> None:
    if out.suffix not in SUFFIXES:
        raise InputError(f"--out must end in {' or '.join(SUFFIXES)}; got {out}.")
    if picture is not None and picture.suffix != ".png":
        raise InputError(f"--picture must end in .png; got {picture}.")
    for file in (out, picture):
        if file is not None and file.exists():
            raise InputError(f"{file} already exists. Choose another name or delete it.")
    if batch_size < 1:
        raise InputError(f"--batch_size must be at least 1 frame; got {batch_size}.")
    if neighbours < 0:
        raise InputError(f"--neighbours must be at least 0; got {neighbours}.")
    if picture is not None and not neighbours:
        raise InputError("--picture shows nearest neighbours: set their number with --neighbours=K.")
    if isinstance(source, Path) and not source.exists():
        raise InputError(
            f"There is no file or folder {source}. Use a dataset, a folder of pictures, a picture or a table."
        )


@exit_on_bad_input()
def main(argv: Sequence[str] | None = None) -> None:
    """Write features as the arguments specify."""
    args = _parser().parse_args(argv)
    require_name("--out", args.out)
    if args.projector is not None:
        require_name("--projector", args.projector)
    done = embed_frames(
        args.encoder,
        args.source,
        args.out,
        split=args.split,
        batch_size=args.batch_size,
        neighbours=args.neighbours,
        picture=args.picture,
        projector=args.projector,
    )
    out = Path(args.out).expanduser()
    print(f"{out}  {done.frames:,} frames  {out.stat().st_size / 1e6:.2f} MB")
    if args.picture is not None:
        print(Path(args.picture).expanduser())
    if args.projector is not None:
        print(f"{args.projector}  (tensorboard --logdir {args.projector}, or load its files in an Embedding Projector)")
    if done.faults:
        left_out = f"{len(done.faults):,} of {done.frames + len(done.faults):,} frames could not be read"
        if not args.skip_bad:
            raise InputError(f"{left_out} and are not in {out}. If that is acceptable, use --skip_bad.")
        print(f"{left_out} and were left out.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m awcl_jax.embed",
        description="Write the features of frames from a trained encoder, with the labels of each frame.",
        epilog="examples:\n"
        "  python -m awcl_jax.embed runs/20260101-120000-fine data/fpdb --split=test --out=test.parquet\n"
        "  python -m awcl_jax.embed exported pictures --out=features.npz\n"
        "  python -m awcl_jax.embed exported scans.csv --out=features.parquet --neighbours=5 --picture=alike.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "encoder",
        metavar="ENCODER",
        help="folder of a run, of one of its checkpoints (RUN/checkpoints/500), or of awcl_jax.export; "
        "also on a bucket (gs://BUCKET/FOLDER); an export also on the Hugging Face hub (hf://USER/NAME[@REVISION])",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a prepared dataset, also on a bucket; a folder of pictures, including subfolders (png, jpg, bmp, tif, "
        "webp); one picture; or a CSV or Parquet table with a column path (other columns are kept)",
    )
    parser.add_argument("--out", metavar="FILE", required=True, help="output file, .parquet or .npz")
    parser.add_argument("--split", metavar="NAME", help="split of a prepared dataset (default: all frames)")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=BATCH_SIZE,
        metavar="N",
        help="number of frames encoded at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--neighbours",
        type=int,
        default=0,
        metavar="K",
        help="for each frame, list the K frames with the nearest features and whether they are of the same scan; needs "
        "all features in memory",
    )
    parser.add_argument(
        "--picture", metavar="FILE", help="output PNG of some frames with their nearest neighbours from other scans"
    )
    parser.add_argument(
        "--projector",
        metavar="FOLDER",
        help="output folder for TensorFlow's Embedding Projector: features, labels and a small picture of each frame "
        "(of at most 10,000, evenly spread)",
    )
    parser.add_argument(
        "--skip_bad", action="store_true", help="exit with status 0 even if some frames could not be read"
    )
    return parser
