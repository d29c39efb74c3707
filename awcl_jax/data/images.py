"""Picture files, and tables that name them."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image
from pyarrow import csv, parquet

from awcl_jax.errors import InputError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
TABLES = (".csv", ".parquet")
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # Pillow's modes of more than 8 bits
_DELIMITERS = ",;\t"


def read_image(path: Path) -> UInt8[np.ndarray, "h w"]:
    """A picture file as grey: colours become their luminance (ITU-R BT.601), transparency is dropped.

    Raises:
      InputError: the file cannot be opened, is broken or cut short, has more than 8 bits a pixel, or several pictures.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.format == "PNG":
                image.verify()  # checksums, which decoding does not look at; leaves the image unusable
    except Exception as error:  # Pillow's decoders raise many kinds
        raise InputError(f"{path} cannot be read: {_why(error)}.") from error
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise InputError(f"{path} cannot be read: it holds {pages} pictures; give each in a file of its own.")
            if image.mode in _DEEP:
                raise InputError(f"{path} cannot be read: it has more than 8 bits a pixel; convert it to 8.")
            return np.asarray(image.convert("L"))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read: {_why(error)}.") from error


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
        raise InputError(f"{path} is no {kind}: {_first_line(error)}.") from error
    names = table.column_names
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path} has the column {repeated[0]!r} more than once: rename one.")
    if "path" not in names:
        raise InputError(f"{path} has no column 'path', which names the files; it has {', '.join(names) or 'none'}.")
    if not table.num_rows:
        raise InputError(f"{path} names no pictures: it has a header and no rows.")
    table = table.set_column(names.index("path"), "path", table["path"].cast(pa.string()))
    return table.replace_schema_metadata(None)  # what pandas notes of its index does not hold for parts of a table


def _read_csv(path: Path) -> pa.Table:
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    parsing = csv.ParseOptions(delimiter=max(_DELIMITERS, key=header.count), newlines_in_values=True)
    with csv.open_csv(path, parse_options=parsing) as opened:
        names = opened.schema.names
    text = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
    )
    return csv.read_csv(path, parse_options=parsing, convert_options=text)


def _why(error: Exception) -> str:
    """Why a file could not be read, without its name, which Pillow sometimes gives and sometimes not."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no PNG, JPEG, BMP or TIFF"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"it is broken ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
