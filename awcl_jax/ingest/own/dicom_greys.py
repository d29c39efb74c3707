"""DICOM samples as 8-bit grey: the only place that decides on colours and depth.

Colours. Three components are RGB or YCbCr, decided once per file, by the first of these that is conclusive:

1. the stream (see `codestream.py`), if nothing can overrule it;
2. the pixels, if they contradict 3 and 4. Most of an ultrasound picture is grey, above all black, and grey
   is (g, g, g) in RGB and (g, 128, 128) in YCbCr; read as the other, hardly a pixel is grey;
3. the stream, if it is only a hint;
4. the tag PhotometricInterpretation:

       RGB                                   RGB
       YBR_FULL, YBR_FULL_422                YCbCr of 0 to 255, BT.601 (PS3.3 C.7.6.3.1.2)
       YBR_ICT, YBR_RCT                      RGB: decoders of JPEG 2000 undo them, and some leave the tag
       YBR_PARTIAL_422, YBR_PARTIAL_420      YCbCr of 16 to 235 (retired)
       anything else                         nothing

   The length of uncompressed YBR_FULL_422 shows whether it has two samples per pixel or three (`dicom_frames.py`).

A stream of one component is grey, or indices of a palette, whatever the tag says of colours.

Depth. Fewer than 8 bits are spread over 0 to 255, and 8 bits stay as they are. Grey values of more than 8 bits: first
the modality's slope and intercept or its table; then the user's window, else the file's first window, else its first
table (VOI LUT), else the range of storable values becomes 0 to 255. If a picture's values span less than an eighth of
that range, fewer than 32 greys would be left, and it is refused.
"""

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from awcl_jax.ingest.own import dicom_tags
from awcl_jax.ingest.own.dicom_frames import Layout, Samples
from awcl_jax.ingest.own.images import apply_window
from awcl_jax.ingest.own.items import BadFileError, Picture, Reading

if TYPE_CHECKING:
    from pydicom import Dataset

Model = Literal["rgb", "ybr", "partial"]

TAGS: dict[str, Model] = {
    "RGB": "rgb",
    "YBR_FULL": "ybr",
    "YBR_FULL_422": "ybr",
    "YBR_ICT": "rgb",
    "YBR_RCT": "rgb",
    "YBR_PARTIAL_422": "partial",
    "YBR_PARTIAL_420": "partial",
}
"""PhotometricInterpretation -> what three components are."""

_COLOURED = 16  # least distance of two channels; lossy compression makes smaller ones out of grey
_NEUTRAL = 8  # largest distance that counts as grey when pixels decide on the colours
_MOSTLY, _MORE = 0.5, 4  # share of grey pixels that decides, and its least ratio to the other reading
_FEWEST = 3  # bits: values that span less than 2**-3 of the range need a window


class Greys:
    """Makes pictures of a file's frames. Decisions for one frame hold for later ones.

    Args:
      tags: of the file.
      layout: of a frame, by the tags.
      reading: the user's window.
    """

    def __init__(self, tags: "Dataset", layout: Layout, reading: Reading) -> None:
        self._tags, self._layout, self._reading = tags, layout, reading
        self._model: Model | None = None
        self._spread = False

    def picture(self, samples: Samples) -> Picture:
        """Make a picture of a frame.

        Raises:
          BadFileError: the meaning of its values is unclear, or they are too deep to display.
        """
        values, bits = self._stored(samples)
        if values.ndim == 3:
            return self._of_colours(self._to_eight(values, bits), samples)
        if self._layout.photometric == "PALETTE COLOR":
            return self._of_palette(values)
        grey = self._to_grey(values, bits)
        return Picture(255 - grey if self._layout.photometric == "MONOCHROME1" else grey)

    def _stored(self, samples: Samples) -> tuple[Shaped[np.ndarray, "..."], int]:
        """Return the values without foreign bits, and their number of bits.

        Bits beyond the stream's precision are foreign. So are bits above BitsStored, where only old overlay planes may
        be (PS3.5 8.1.1).

        Raises:
          BadFileError: values are larger than BitsStored allows.
        """
        values, layout = samples.values, self._layout
        bits = layout.stored
        if samples.stream is not None:
            precision = samples.stream.precision
            bits = precision if layout.allocated < precision else min(bits, precision)
        held = 8 * values.dtype.itemsize
        if layout.signed and values.dtype == np.uint8:
            values = values.view(np.int8)
        low = layout.high + 1 - layout.stored if samples.stream is None else 0
        if held == bits or layout.allocated == 1:
            return values, bits
        unsigned = values.view(values.dtype.str.replace("i", "u"))
        kept = unsigned >> low & ((1 << bits) - 1)
        if layout.signed:
            sign = 1 << (bits - 1)
            kept = (kept.astype(np.int64) ^ sign) - sign
        strays = ((unsigned >> low) >> bits).any()
        if strays and not (layout.signed and np.array_equal(kept, values)) and not self._has_overlays:
            raise BadFileError("contradiction", f"it has values with more bits than BitsStored, {bits}")
        return kept, bits

    @functools.cached_property
    def _has_overlays(self) -> bool:
        return any(tag.group in range(0x6000, 0x6020, 2) for tag in self._tags.keys())  # noqa: SIM118  values stay unread

    def _to_eight(self, values: Shaped[np.ndarray, "h w 3"], bits: int) -> UInt8[np.ndarray, "h w 3"]:
        if bits <= 8 or values.dtype == np.uint8:
            spare = self._spare(bits)  # shifted, YCbCr's middle stays in the middle
            return (values << spare if spare else values).astype(np.uint8, copy=False)
        if self._reading.window is not None:
            return np.stack([apply_window(channel, self._reading.window) for channel in np.moveaxis(values, -1, 0)], -1)
        self._require_spread(values, bits)
        return (values >> (bits - 8)).astype(np.uint8)

    def _of_colours(self, values: UInt8[np.ndarray, "h w 3"], samples: Samples) -> Picture:
        stream = samples.stream
        if stream is not None and stream.certain and stream.colours:
            model: Model = stream.colours
        else:
            if self._model is None:
                stated = (stream.colours if stream is not None else "") or TAGS.get(self._layout.photometric)
                self._model = _model_by_pixels(values, stated or None) or stated or None
            if self._model is None:
                raise BadFileError("contradiction", "it is unclear whether its colours are RGB or YCbCr")
            model = self._model
        return Picture(*_to_luminance(_to_rgb(values, model)))

    def _of_palette(self, values: Shaped[np.ndarray, "h w"]) -> Picture:
        first, table = self._palette
        places = np.clip(values.astype(np.int64) - first, 0, len(table) - 1)
        grey, _ = _to_luminance(table[:, None])
        return Picture(grey[:, 0][places], _is_coloured(table[places[::4, ::4]]))

    @functools.cached_property
    def _palette(self) -> tuple[int, UInt8[np.ndarray, "n 3"]]:
        """Return the stored value of its first entry, and the colours."""
        tags, names = self._tags, [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
        if not all(dicom_tags.has_value(tags, f"{name}Descriptor") for name in names):
            raise BadFileError("bad_tag", f"{names[0]}Descriptor is missing")
        if dicom_tags.has_value(tags, f"Segmented{names[0]}Data"):
            tables = [_segments(tags)]
        else:
            tables = [_read_table(tags, f"{name}Descriptor", f"{name}Data", self._layout.signed) for name in names]
        first, bits = tables[0].first, max(table.bits for table in tables)
        length = min(len(table.values) for table in tables)
        colours = np.stack([table.values[:length] for table in tables], -1).reshape(length, 3)
        return first, (colours >> max(bits - 8, 0)).astype(np.uint8)

    def _to_grey(self, values: Shaped[np.ndarray, "h w"], bits: int) -> UInt8[np.ndarray, "h w"]:
        """Convert values x to 8 bits: y = slope x + intercept, then the window (PS3.3 C.11.2.1.2 and C.11.2.1.3).

        Unsigned values of 8 bits stay as they are. The user's window is only for more than 8 bits, so that one command
        can read files of both kinds.
        """
        signed = self._layout.signed
        slope, intercept, modality = self._modality
        window = self._reading.window if max(bits, modality.bits if modality else 0) > 8 else None
        if bits <= 8 and not signed and (slope, intercept) == (1, 0) and modality is None:
            spare = self._spare(bits)
            return apply_window(values, (0, 2 ** (8 - spare) - 1)) if spare else values.astype(np.uint8)
        if modality is not None:
            scaled, ends = modality.look_up(values), (0.0, float(2**modality.bits - 1))
        else:
            scaled = slope * values.astype(np.float64) + intercept
            least = -(2 ** (bits - 1)) if signed else 0
            low, high = sorted((slope * least + intercept, slope * (least + 2**bits - 1) + intercept))
            ends = (low, high)
        if window is not None:
            return apply_window(scaled, window)
        if (shown := _apply_file_window(scaled, self._shared("FrameVOILUTSequence", "WindowWidth"))) is not None:
            return shown
        if (table := self._voi) is not None:
            return apply_window(table.look_up(scaled), (0, 2**table.bits - 1))
        if bits > 8:
            self._require_spread(scaled / abs(slope or 1), bits if modality is None else modality.bits)
        return apply_window(scaled, ends)

    def _spare(self, bits: int) -> int:
        """Return how many of 8 bits values lack. A stream may need fewer than BitsStored, whose greys they are."""
        return max(8 - max(bits, self._layout.stored), 0)

    def _require_spread(self, values: Shaped[np.ndarray, "..."], bits: int) -> None:
        """Refuse values without a window that would leave few greys."""
        if self._spread:
            return
        spread = float(values.max()) - float(values.min())
        if 0 < spread < 2 ** (bits - _FEWEST) and bits > 8:
            raise BadFileError("bit_depth")
        self._spread = spread > 0

    @functools.cached_property
    def _modality(self) -> "tuple[float, float, _Table | None]":
        """Return slope, intercept, and the table that replaces both, if any."""
        tags = self._shared("PixelValueTransformationSequence", "RescaleSlope")
        tables = dicom_tags.items(self._tags, "ModalityLUTSequence")
        table = _read_table(tables[0], "LUTDescriptor", "LUTData", self._layout.signed) if tables else None
        return (
            dicom_tags.number(tags, "RescaleSlope", 1),
            dicom_tags.number(tags, "RescaleIntercept", 0),
            table,
        )

    @functools.cached_property
    def _voi(self) -> "_Table | None":
        tables = dicom_tags.items(self._shared("FrameVOILUTSequence", "VOILUTSequence"), "VOILUTSequence")
        return _read_table(tables[0], "LUTDescriptor", "LUTData", self._layout.signed) if tables else None

    def _shared(self, macro: str, name: str) -> "Dataset":
        return dicom_tags.shared(self._tags, macro, name)


def _model_by_pixels(values: UInt8[np.ndarray, "h w 3"], stated: Model | None) -> Model | None:
    """Return RGB or YCbCr if far more pixels are grey that way than as stated; None if inconclusive."""
    c = values[::4, ::4].astype(np.int16)
    shares = {
        "rgb": float((c.max(axis=-1) - c.min(axis=-1) <= _NEUTRAL).mean()),
        "ybr": float((np.abs(c[..., 1:] - 128) <= _NEUTRAL).all(axis=-1).mean()),
    }
    other: Model = "ybr" if stated == "rgb" or (stated is None and shares["ybr"] > shares["rgb"]) else "rgb"
    own = "rgb" if other == "ybr" else "ybr"
    return other if shares[other] >= _MOSTLY and shares[other] > _MORE * shares[own] else None


def _to_rgb(values: UInt8[np.ndarray, "h w 3"], model: Model) -> UInt8[np.ndarray, "h w 3"]:
    from pydicom.pixels import convert_color_space

    if model == "rgb":
        return values
    if model == "partial":
        stretched = (values.astype(np.float32) - (16, 128, 128)) * (255 / 219, 255 / 224, 255 / 224) + (0, 128, 128)
        values = np.rint(np.clip(stretched, 0, 255)).astype(np.uint8)
    return convert_color_space(np.array(values), "YBR_FULL", "RGB")


def _to_luminance(rgb: UInt8[np.ndarray, "h w 3"]) -> tuple[UInt8[np.ndarray, "h w"], bool]:
    """Return the grey, and whether there were colours."""
    return cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY), _is_coloured(rgb[::4, ::4])


def _is_coloured(rgb: UInt8[np.ndarray, "h w 3"]) -> bool:
    sample = rgb.astype(np.int16)
    return bool((sample.max(axis=-1) - sample.min(axis=-1) > _COLOURED).any())


def _apply_file_window(scaled: Float[np.ndarray, "h w"], tags: "Dataset") -> UInt8[np.ndarray, "h w"] | None:
    """Apply the file's first window; return None if it has none."""
    centre, width = (dicom_tags.number(tags, name, math.nan) for name in ("WindowCenter", "WindowWidth"))
    if not (math.isfinite(centre) and width > 1):
        return None
    function = dicom_tags.text(tags, "VOILUTFunction")
    if function == "SIGMOID":
        return np.rint(255 / (1 + np.exp(-4 * (scaled - centre) / width))).astype(np.uint8)
    if function != "LINEAR_EXACT":
        centre, width = centre - 0.5, width - 1
    return apply_window(scaled, (centre - width / 2, centre + width / 2))


@dataclasses.dataclass(frozen=True)
class _Table:
    """A lookup table: the value of its first entry, its entries, and their number of bits."""

    first: int
    values: Shaped[np.ndarray, "..."]
    bits: int

    def look_up(self, values: Shaped[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        """Return the entries of these values; values beyond an end have the entry there."""
        places = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.values) - 1)
        return self.values[places].astype(np.float64)


def _read_table(tags: "Dataset", descriptor: str, data: str, signed: bool) -> _Table:
    """Read a lookup table (PS3.3 C.7.6.3.1.5 and C.11.1.1.1), whose entries may be bytes, or bytes in 16-bit words.

    Raises:
      BadFileError: it is missing or invalid.
    """
    try:
        count, first, bits = (int(part) for part in dicom_tags.value(tags, descriptor))
    except (TypeError, ValueError):
        raise BadFileError("bad_tag", f"{descriptor} is invalid") from None
    count = count or 1 << 16
    if signed and first >= 1 << 15:
        first -= 1 << 16
    found = dicom_tags.value(tags, data)
    if isinstance(found, bytes):
        word = "<u2" if tags.original_encoding[1] in (None, True) else ">u2"
        values = np.frombuffer(found, np.uint8 if len(found) < 2 * count else word)
    else:
        values = np.asarray(found if found is not None else (), np.uint16).reshape(-1)
        if len(values) < count <= 2 * len(values):
            values = values.astype("<u2").view(np.uint8)
    if len(values) < count:
        raise BadFileError("bad_tag", f"{data} is {'too short' if len(values) else 'missing'}")
    values = values[:count]
    return _Table(first, values, _bits_of(values, bits))


def _bits_of(values: Shaped[np.ndarray, "..."], stated: int) -> int:
    """Return the bits of a table's entries: 8 if all of them fit, even in 16-bit words."""
    most = int(values.max())
    return 8 if most < 256 else stated if 8 < stated <= 16 and most < 1 << stated else 16


def _segments(tags: "Dataset") -> _Table:
    """Expand a segmented palette with pydicom: all three columns."""
    from pydicom.pixels import apply_color_lut

    count, first, bits = (int(part) for part in dicom_tags.value(tags, "RedPaletteColorLookupTableDescriptor"))
    places = np.arange(first, first + (count or 1 << 16))
    values = apply_color_lut(places, tags)
    return _Table(first, values, _bits_of(values, bits))
