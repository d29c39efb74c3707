"""Picture files, and tables that list them."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Shaped, UInt8
from PIL import Image
from pyarrow import csv, parquet

from awcl_jax.data.limits import MAX_PIXELS
from awcl_jax.data.sheets import read_sheet
from awcl_jax.data.upright import orientation_of, upright
from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.runtime.files import require_regular

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
TABLES = (".csv", ".parquet", ".xlsx")

_MOST_ROWS = 20_000_000  # of a Parquet table
_MOST_TABLE_BYTES = 2_000_000_000
_ROWS_AT_A_TIME = 4096

GAPS = frozenset({"nan", "NaN", "NA", "N/A", "None", "null", "<NA>"})
"""How programs that write tables spell a cell that is empty."""

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_PAGED = ("GIF", "TIFF", "WEBP")
_NAMES = "PNG, JPEG, BMP, TIFF or WebP"
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # Pillow's names of more than 8 bits, without colours
_GREY_MODES = ("1", "L", "LA", "La")  # its names of pictures of 8 bits without colours
_CLASS_MODES = ("1", "L", "P")  # its names of single values of 8 bits
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF
_LUMINANCE = (0.114, 0.587, 0.299)  # of blue, green and red, ITU-R BT.601
_DELIMITERS = ",;\t"
_SEPARATOR_LINE = "sep="  # sets a CSV's delimiter for Excel


class BadImageError(InputError):
    """A picture that cannot be used.

    Attributes:
      kind: `no_image`, `too_large`, `several_pages`, `cut_short` or `bit_depth`.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


@dataclasses.dataclass(frozen=True, slots=True)
class Grey:
    """The grey values of a picture, upright.

    Attributes:
      values: uint8, or what the file holds where it has more than 8 bits a pixel: uint16, int32 or float; float64 where
        these are the luminance of colours. 0 is black.
      colour: whether they were made from colours.
    """

    values: Shaped[np.ndarray, "h w"]
    colour: bool

    @property
    def deep(self) -> bool:
        """Whether a window has to say which values are black and white."""
        return self.values.dtype != np.uint8


def read_image(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Read a picture file as grey: colours become their luminance (ITU-R BT.601), transparency is dropped.

    It is turned and mirrored as its metadata say, see `awcl_jax.data.upright`.

    Raises:
      InputError: the file cannot be opened, is broken or cut short, has more than 8 bits a pixel, several pictures,
        or more than `MAX_PIXELS`.
    """
    require_regular(path)
    try:
        with path.open("rb") as file:
            grey = read_grey(file)
        if grey.deep:
            raise BadImageError("bit_depth", "it has more than 8 bits a pixel; convert it to 8")
    except BadImageError as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    except (OSError, ValueError) as error:  # a ValueError: a name with a null character
        why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error).rstrip(".")
        raise InputError(f"{path} cannot be read: {why}.") from error
    return grey.values


def read_grey(file: BinaryIO | io.BytesIO, *, max_pixels: int = MAX_PIXELS) -> Grey:
    """Read the grey values of a picture file, with all the bits that it has.

    Raises:
      BadImageError: it is not a PNG, JPEG, BMP, TIFF or WebP, is broken or cut short, holds several pictures, or has
        more pixels; or it has more than 8 bits a pixel in a form that cannot be read.
    """
    with _decoded(file, max_pixels) as image:
        return _grey_of(image, file)


def check_image(file: BinaryIO | io.BytesIO, *, max_pixels: int = MAX_PIXELS) -> int:
    """Decode a picture file to check it, and return its orientation (see `awcl_jax.data.upright`).

    Raises:
      BadImageError: as `read_grey`.
    """
    with _decoded(file, max_pixels) as image:
        return orientation_of(image)


def read_pages(file: BinaryIO | io.BytesIO, *, max_pixels: int = MAX_PIXELS) -> Iterator[Grey]:
    """Read the pictures of a GIF, TIFF or WebP one after the other, as they are displayed.

    Raises:
      BadImageError: as `read_grey`, of the first of them that cannot be read.
    """
    image = _open(file, _PAGED)
    try:
        pages = getattr(image, "n_frames", 1)
    except Exception as error:  # Pillow's decoders raise many kinds
        raise _broken(error) from error
    for page in range(pages):
        try:
            image.seek(page)
            _require_size(image, max_pixels)
            image.load()
        except BadImageError:
            raise
        except Exception as error:
            raise _broken(error) from error
        yield _grey_of(image, file if pages == 1 else None)


def read_classes(
    file: BinaryIO | io.BytesIO, *, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "h w"] | None, UInt8[np.ndarray, "colours 3"] | None, str]:
    """Read a mask: single values of 8 bits, or the indices of a palette.

    Returns:
      (its values, upright; None if it has no single 8-bit values, the palette if it has one, Pillow's name of its mode)

    Raises:
      BadImageError: as `read_grey`.
    """
    with _decoded(file, max_pixels) as image:
        if image.mode not in _CLASS_MODES or _bits_of(image, file) > 8:
            return None, None, image.mode
        palette = None
        if image.mode == "P":
            palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return upright(np.asarray(image), orientation_of(image)).astype(np.uint8), palette, image.mode


@contextlib.contextmanager
def _decoded(file: BinaryIO | io.BytesIO, max_pixels: int) -> Iterator[Image.Image]:
    """Yield a picture with its pixels; their number is checked before the first is decoded.

    Raises:
      BadImageError: as `read_grey`.
    """
    image = _open(file, _FORMATS)
    _require_size(image, max_pixels)
    try:
        pages = getattr(image, "n_frames", 1)
        if image.format == "PNG":
            image.verify()  # checksums, which decoding ignores; leaves the image unusable
            file.seek(0)
            image = _open(file, _FORMATS)
        if pages == 1:
            image.load()
    except Exception as error:  # Pillow's decoders raise many kinds
        raise _broken(error) from error
    if pages > 1:
        raise BadImageError("several_pages", f"it has {pages} pictures; save each in a separate file")
    yield image


def _grey_of(image: Image.Image, file: BinaryIO | io.BytesIO | None) -> Grey:
    """Return the grey values of a loaded picture; `file` is None for a page of several."""
    bits = _bits_of(image, file)
    if image.mode in _DEEP_MODES:
        values = np.asarray(image)
        if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # type: ignore[attr-defined]
            # Pillow turns 8 bits to black is zero, but not more.
            if values.dtype != np.uint16:
                raise BadImageError("bit_depth", f"white is 0 in numbers of {bits} bits; convert it to 8")
            values = np.uint16(2**bits - 1) - values
        return Grey(upright(values, orientation_of(image)), False)
    if bits > 8:
        return _deep_colours(image, file, bits)
    orientation = orientation_of(image)
    if image.mode in _GREY_MODES:
        return Grey(upright(_luminance(image), orientation), False)
    channels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    colour = bool((channels != channels[..., :1]).any())
    return Grey(upright(_luminance(image), orientation), colour)


def _deep_colours(image: Image.Image, file: BinaryIO | io.BytesIO | None, bits: int) -> Grey:
    """Return the luminance of channels of more than 8 bits, of which Pillow drops the lower ones."""
    pixels = None
    if file is not None:
        file.seek(0)
        flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
        pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), flags)
    if pixels is None or pixels.dtype == np.uint8:
        raise BadImageError("bit_depth", f"it has {bits} bits in each of several channels; convert it to 8")
    # OpenCV always turns a TIFF, as does Pillow, which then no longer names an orientation.
    orientation = orientation_of(image)
    if pixels.ndim == 2:
        return Grey(upright(pixels, orientation), False)
    channels = pixels[..., :3]
    if (channels == channels[..., :1]).all():
        return Grey(upright(np.ascontiguousarray(channels[..., 0]), orientation), False)
    return Grey(upright(channels @ np.array(_LUMINANCE), orientation), True)


def _bits_of(image: Image.Image, file: BinaryIO | io.BytesIO | None) -> int:
    """Return the bits of a pixel's largest channel, by the file's header: Pillow's mode does not always show them."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS, (1,)))  # type: ignore[attr-defined]
    if image.format == "PNG" and file is not None:
        file.seek(24)
        return file.read(1)[0]
    return 8


def _luminance(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """Return the luminance (ITU-R BT.601) of a picture of 8 bits; three equal channels keep their values."""
    if image.mode == "L":
        return np.asarray(image)  # `convert` would copy it
    return np.asarray((image if image.mode in _GREY_MODES else image.convert("RGB")).convert("L"))


def _open(file: BinaryIO | io.BytesIO, formats: tuple[str, ...]) -> Image.Image:
    try:
        return Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise BadImageError("too_large", "it has far too many pixels") from error
    except Exception as error:  # Pillow raises many kinds
        if (bits := _jpeg_bits(file)) > 8:
            raise BadImageError("bit_depth", f"it is a JPEG of {bits} bits a pixel; convert it to 8") from error
        raise BadImageError("no_image", f"it is not a {_NAMES}") from error


def _require_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise BadImageError("too_large", f"it has {image.width} x {image.height} pixels, more than {max_pixels:,}")


def _broken(error: Exception) -> BadImageError:
    return BadImageError("cut_short", f"it is broken ({first_line(error).rstrip('.')})")


def _jpeg_bits(file: BinaryIO | io.BytesIO) -> int:
    """Return the precision that a JPEG's frame header names; 0 if there is none."""
    file.seek(0)
    if file.read(2) != b"\xff\xd8":
        return 0
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        marker, length = head[1], int.from_bytes(head[2:])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # SOF, but not DHT, JPG and DAC
            return (file.read(1) or b"\0")[0]
        file.seek(length - 2, os.SEEK_CUR)
    return 0


def find_images(folder: Path) -> list[str]:
    """Return the sorted paths, relative to the folder, of all picture files in it and below; see `find_files`."""
    return [name for name in find_files(folder) if name.lower().endswith(IMAGES)]


def find_files(folder: Path) -> list[str]:
    """Return the sorted paths, relative to the folder, of all files in it and below, except hidden ones.

    Links to folders are followed, each folder once.
    """
    found: list[str] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        # Emptied, so that a link to a parent folder does not loop for ever.
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            names = (name for name in files if not name.startswith("."))
            found.extend((Path(place) / name).relative_to(folder).as_posix() for name in names)
        seen.add(real)
    return sorted(found)


def find_named(root: Path, name: str) -> Path:
    """Return the file that a table names; if it does not exist, the one apparently meant.

    Tables of another system write folders with backslashes, and an ending in other letters (`.PNG` for `.png`). A file
    of exactly that name is preferred. Of several spellings of an ending the whole name's own is tried first.

    Args:
      root: folder that the name is relative to.
      name: path as the table has it.

    Returns:
      The first of the candidates that exists; without one, the file of exactly that name.
    """
    exact = root / name
    if os.path.exists(exact):  # noqa: PTH110  Path.exists raises for names that no disk can have
        return exact
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
        path = root / spelling
        for suffix in dict.fromkeys((path.suffix, path.suffix.lower(), path.suffix.upper())):
            candidate = path.with_suffix(suffix) if path.name else path
            if os.path.exists(candidate):  # noqa: PTH110
                return candidate
    return exact


class ColumnError(InputError):
    """A table lacks a column.

    Attributes:
      headed: whether the first row certainly names columns, because one of those looked for is there. Otherwise the
        names in the message may be values.
    """

    def __init__(self, why: str, *, headed: bool) -> None:
        super().__init__(why)
        self.headed = headed


def read_manifest(path: Path, *, columns: Mapping[str, str] | None = None) -> pa.Table:
    """Read a table with a row for each picture and its file in the column `path`. Cells of a CSV stay text (`007`).

    Columns of a CSV are separated by commas, semicolons or tabs, whichever its header has most of, or by what a first
    line `sep=;` names. An empty cell is null. An Excel workbook is read by `awcl_jax.data.sheets`.

    Args:
      path: of the table.
      columns: name of a column here -> its name in the table, if that is another.

    Raises:
      InputError: the file is not such a table, has a column twice, lacks a column (`ColumnError`), or has no rows.
    """
    require_regular(path)
    kind = {".parquet": "Parquet file", ".xlsx": "Excel workbook"}.get(path.suffix.lower(), "CSV in UTF-8")
    try:
        table = {".parquet": _read_parquet, ".xlsx": read_sheet}.get(path.suffix.lower(), _read_csv)(path)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a {kind}: {first_line(error).rstrip('.')}.") from error
    names = table.column_names
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path} has the column {repeated[0]!r} more than once. Rename one.")
    table = _renamed(table, columns or {}, path)
    names = table.column_names
    if "path" not in names:
        raise ColumnError(
            f"{path} has no column 'path' with the file names; its columns are {', '.join(names) or 'none'}.",
            headed=bool(columns),
        )
    if not table.num_rows:
        raise InputError(f"{path} lists no pictures: it has a header but no rows.")
    try:
        paths = table["path"].cast(pa.string())
    except pa.ArrowException:
        raise InputError(f"The column 'path' of {path} must have file names; got {table['path'].type}.") from None
    table = table.set_column(names.index("path"), "path", paths)
    return table.replace_schema_metadata(None)  # pandas stores its index there, which is wrong for parts of a table


def _renamed(table: pa.Table, columns: Mapping[str, str], path: Path) -> pa.Table:
    """Return the table with its columns under the names used here; blanks around a name in the table do not matter."""
    names = table.column_names
    stripped = {name.strip(): name for name in names}
    found = {known: name if name in names else stripped.get(name.strip()) for known, name in columns.items()}
    if lacking := [columns[known] for known, name in found.items() if name is None]:
        raise ColumnError(
            f"{path} has no column {' and no '.join(map(repr, lacking))}; its columns are {', '.join(names)}.",
            headed=len(lacking) < len(columns),
        )
    rest = [name for name in names if name not in (*found.values(), *columns)]
    return table.select([*found.values(), *rest]).rename_columns([*found, *rest])


def _read_parquet(path: Path) -> pa.Table:
    """Read a table a few rows at a time: one value, stored once, can be the cell of any number of rows.

    Texts are therefore read as numbers of distinct ones, and written out when their sum is known.
    """
    batches, size = [], 0
    with parquet.ParquetFile(path) as file:
        plain, rows = file.schema_arrow, file.metadata.num_rows
    texts = [field.name for field in plain if _is_text(field.type)]
    # What is in a list is not read in this way.
    at_a_time = _ROWS_AT_A_TIME if not any(pa.types.is_nested(field.type) for field in plain) else 64
    with parquet.ParquetFile(path, read_dictionary=texts) as file:
        if rows > _MOST_ROWS:
            raise InputError(f"{path} must have at most {_MOST_ROWS:,} rows; got {rows:,}. Split it.")
        for batch in file.iter_batches(batch_size=at_a_time):
            size += sum(map(_bytes_of, batch.columns))
            if size > _MOST_TABLE_BYTES:
                raise InputError(
                    f"{path} must have at most {_MOST_TABLE_BYTES / 1e9:.0f} GB of cells; it has more. Split it, or "
                    "remove columns."
                )
            batches.append(batch.cast(plain))
        return pa.Table.from_batches(batches, schema=plain).combine_chunks()


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_kind(kind) for is_kind in tests)


def _bytes_of(column: pa.Array) -> int:
    """Return the bytes of a column with every text written out."""
    if not (pa.types.is_dictionary(column.type) and _is_text(column.type.value_type)):
        return column.nbytes
    lengths = pc.binary_length(column.dictionary).take(column.indices)
    return column.indices.nbytes + (pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0)


def named_separator(line: str) -> str:
    """Return the delimiter that a CSV's first line names, such as `sep=;` for Excel; empty for any other line."""
    named = line.rstrip("\r\n").strip('"')
    delimiters = named.removeprefix(_SEPARATOR_LINE)
    # Programs that fill up rows repeat it for the columns that this line lacks.
    return delimiters[0] if named != delimiters and len(set(delimiters)) == 1 else ""


def _read_csv(path: Path) -> pa.Table:
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
        if named := named_separator(header):
            header = file.readline()
    delimiter = named or max(_DELIMITERS, key=header.count)
    ragged: list[tuple[int, int, int]] = []

    def note(row: csv.InvalidRow) -> str:
        # Not row.text, which pyarrow would print: it may name a patient.
        ragged.append((row.number or 0, row.actual_columns, row.expected_columns))
        return "skip"

    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note)
    # With threads, rows have no number.
    above = 1 if named else 0
    reading = csv.ReadOptions(use_threads=False, skip_rows=above)
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
            f"{path} has {cells} cells in row {number - 1 - above} and {columns} in its header. Quote names that "
            f"contain {delimiter!r}."
        )
    return table
