"""Picture files, and tables that name them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image
from pyarrow import csv, parquet

from awcl_jax.runtime.errors import InputError, first_line

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
TABLES = (".csv", ".parquet")
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
MAX_PIXELS = 50_000_000
"""A picture with more is refused: a file of a few bytes can say that it is as large as memory."""

DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Pillow's names of pictures with more than 8 bits a pixel."""

GREY_MODES = ("1", "L", "LA", "La")
"""Its names of pictures without colours."""

_DELIMITERS = ",;\t"


class BadImageError(InputError):
    """A picture that cannot be used.

    Attributes:
      kind: `no_image`, `too_large`, `several_pages`, `cut_short` or `bit_depth`.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


def read_image(path: Path) -> UInt8[np.ndarray, "h w"]:
    """A picture file as grey: colours become their luminance (ITU-R BT.601), transparency is dropped.

    Raises:
      InputError: the file cannot be opened, is broken or cut short, has more than 8 bits a pixel, several pictures, or
        more than `MAX_PIXELS`.
    """
    try:
        with path.open("rb") as file, decoded(file) as image:
            if image.mode in DEEP_MODES:
                raise BadImageError("bit_depth", "it has more than 8 bits a pixel; convert it to 8")
            return to_grey(image)
    except BadImageError as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    except (OSError, ValueError) as error:  # a ValueError: a name with a null character
        why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error).rstrip(".")
        raise InputError(f"{path} cannot be read: {why}.") from error


@contextlib.contextmanager
def decoded(file: BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """A picture with its pixels; how many these are is looked at before the first of them is decoded.

    Raises:
      BadImageError: it is no PNG, JPEG, BMP or TIFF, is broken or cut short, holds several pictures, or has more
        pixels.
    """
    image = _open(file)
    if image.width * image.height > max_pixels:
        raise BadImageError("too_large", f"it has {image.width} x {image.height} pixels, more than {max_pixels:,}")
    try:
        pages = getattr(image, "n_frames", 1)
        if image.format == "PNG":
            image.verify()  # checksums, which decoding does not look at; leaves the image unusable
            file.seek(0)
            image = _open(file)
        if pages == 1:
            image.load()
    except Exception as error:  # Pillow's decoders raise many kinds
        raise BadImageError("cut_short", f"it is broken ({first_line(error).rstrip('.')})") from error
    if pages > 1:
        raise BadImageError("several_pages", f"it holds {pages} pictures; give each in a file of its own")
    yield image


def to_grey(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """The luminance (ITU-R BT.601) of a picture of 8 bits; three equal channels keep their values."""
    return np.asarray((image if image.mode in GREY_MODES else image.convert("RGB")).convert("L"))


def _open(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImageError("too_large", "it has far too many pixels") from error
    except Exception as error:  # Pillow raises many kinds
        raise BadImageError("no_image", "it is no PNG, JPEG, BMP or TIFF") from error


def find_images(folder: Path) -> list[str]:
    """Paths, relative to the folder, of all picture files in it and below, sorted; hidden ones are left out.

    Links to folders are followed, each folder once.
    """
    found: list[str] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        # Emptied, so that a link back up does not lead around for ever.
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            names = (name for name in files if not name.startswith(".") and name.lower().endswith(IMAGES))
            found.extend((Path(place) / name).relative_to(folder).as_posix() for name in names)
        seen.add(real)
    return sorted(found)


def read_manifest(path: Path) -> pa.Table:
    """A table with a row for each picture and its file in the column `path`; a CSV's cells are text, `007` stays so.

    Columns of a CSV are separated by commas, semicolons or tabs, whichever its header has most of. An empty cell is
    null.

    Raises:
      InputError: the file is no such table, names a column twice, has no column `path`, or no rows.
    """
    try:
        table = parquet.read_table(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        kind = "Parquet file" if path.suffix.lower() == ".parquet" else "CSV in UTF-8"
        raise InputError(f"{path} is no {kind}: {first_line(error).rstrip('.')}.") from error
    names = table.column_names
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path} has the column {repeated[0]!r} more than once: rename one.")
    if "path" not in names:
        raise InputError(f"{path} has no column 'path', which names the files; it has {', '.join(names) or 'none'}.")
    if not table.num_rows:
        raise InputError(f"{path} names no pictures: it has a header and no rows.")
    try:
        paths = table["path"].cast(pa.string())
    except pa.ArrowException:
        raise InputError(f"{path} has no names of files in its column 'path', but {table['path'].type}.") from None
    table = table.set_column(names.index("path"), "path", paths)
    return table.replace_schema_metadata(None)  # what pandas notes of its index does not hold for parts of a table


def _read_csv(path: Path) -> pa.Table:
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    delimiter = max(_DELIMITERS, key=header.count)
    ragged: list[tuple[int, int, int]] = []

    def note(row: csv.InvalidRow) -> str:
        # Not row.text, which pyarrow would say: it may name a patient.
        ragged.append((row.number or 0, row.actual_columns, row.expected_columns))
        return "skip"

    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note)
    reading = csv.ReadOptions(use_threads=False)  # with threads, rows have no number
    with csv.open_csv(path, read_options=reading, parse_options=parsing) as opened:
        names = opened.schema.names
    ragged.clear()
    text = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
    )
    table = csv.read_csv(path, read_options=reading, parse_options=parsing, convert_options=text)
    if ragged:
        number, cells, columns = ragged[0]
        raise InputError(
            f"{path} has {cells} cells in row {number - 1} and {columns} in its header: put names with a {delimiter!r} "
            "in quotes."
        )
    return table
