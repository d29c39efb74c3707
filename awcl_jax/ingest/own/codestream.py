"""Header of a compressed picture, read from the markers before its data: JPEG, JPEG-LS and JPEG 2000.

    marker        JPEG (DCT)                              lossless JPEG, JPEG-LS      JPEG 2000, HTJ2K
    JFIF          YCbCr; open where the ids are R, G, B   YCbCr, unless pixels deny   -
    Adobe 0 / 1   RGB / YCbCr                             RGB / YCbCr                 -
    ids R, G, B   RGB                                     RGB                         -
    ids 1, 2, 3   YCbCr                                   open                        -
    subsampled    YCbCr                                   YCbCr                       RGB: decoders convert it
    none of it    open                                    open                        open

The columns of JPEG follow libjpeg-turbo (jdapimin.c, `default_decompress_parms`), except where it says "open": there
libjpeg-turbo guesses YCbCr (lossless: RGB), while DICOM has a tag. JPEG 2000 names no colours (ISO/IEC 15444-1): its
multiple component transformation, which the decoder undoes, does not reveal the input. The header of a JP2 file, which
DICOM forbids, may name YCbCr (sYCC); it is removed, because some decoders follow it and others do not.
"""

import dataclasses
from typing import Literal

Codec = Literal["jpeg", "lossless", "jpeg_ls", "jpeg2000"]
Colours = Literal["rgb", "ybr", ""]

_JPEG, _JPEG2000, _JP2 = b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  "
_CODECS: dict[int, Codec] = {
    **dict.fromkeys((0xC0, 0xC1, 0xC2, 0xC9, 0xCA), "jpeg"),
    **dict.fromkeys((0xC3, 0xCB), "lossless"),
    0xF7: "jpeg_ls",
}
"""Start of frame -> codec; without hierarchical JPEG, which no package decodes."""
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_SYCC = 18  # enumerated colour space of JP2
_CAP, _COD, _COC, _SOT, _SOD, _END_OF_STREAM = 0x50, 0x52, 0x53, 0x90, 0x93, 0xD9  # markers of JPEG 2000


@dataclasses.dataclass(frozen=True)
class Codestream:
    """The header of a compressed picture.

    Attributes:
      codec: `jpeg` (DCT), `lossless` (JPEG), `jpeg_ls`, or `jpeg2000`, including HTJ2K.
      size: height and width.
      components: number of components.
      precision: bits of each.
      colours: meaning of three components as decoded; empty if open.
      certain: whether nothing outside the stream can overrule `colours`.
      taken_for_ybr: JPEG only: whether libjpeg reads its three components as YCbCr by default.
      start: offset of the stream's first marker; above 0 after a JP2 header.
      exact: JPEG 2000 only: whether decoders agree on every value: it has one component, unsigned and of its size, and
        is transformed in integers.
    """

    codec: Codec
    size: tuple[int, int]
    components: int
    precision: int
    colours: Colours = ""
    certain: bool = False
    taken_for_ybr: bool = False
    start: int = 0
    exact: bool = False


def begins_picture(head: bytes) -> bool:
    """Return whether these first bytes begin a compressed picture; eight suffice."""
    return head.startswith((_JPEG, _JPEG2000, _JP2)) or begins_rle(head)


def begins_rle(head: bytes) -> bool:
    """Return whether these bytes begin RLE: at most 15 segments, and the first at offset 64, after the header."""
    return len(head) >= 8 and 1 <= int.from_bytes(head[:4], "little") <= 15 and head[4:8] == b"\x40\0\0\0"


def read_codestream(data: bytes) -> Codestream | None:
    """Read the header of a compressed picture; None if its kind is unknown, or the header is truncated."""
    try:
        if data.startswith(_JPEG):
            return _read_jpeg(data)
        if data.startswith(_JPEG2000):
            return _read_jpeg2000(data, 0)
        if data.startswith(_JP2):
            return _read_jp2(data)
    except (IndexError, ValueError):
        pass
    return None


def _read_jpeg(data: bytes) -> Codestream | None:
    jfif, adobe, at = False, -1, 2
    while True:
        if data[at] != 0xFF:
            raise ValueError("no marker")
        marker, at = data[at + 1], at + 2
        if marker == 0xFF:  # fill bytes
            at -= 1
            continue
        if marker in _ALONE:
            continue
        body = data[at + 2 : at + _number(data, at)]
        if marker in _CODECS:
            return _jpeg_frame(_CODECS[marker], body, jfif=jfif, adobe=adobe)
        if (marker in range(0xC1, 0xD0) and marker not in (0xC4, 0xC8, 0xCC)) or marker in (0xD9, 0xDA):
            return None
        jfif |= marker == 0xE0 and body.startswith(b"JFIF\0")
        if marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
        at += _number(data, at)


def _jpeg_frame(codec: Codec, body: bytes, *, jfif: bool, adobe: int) -> Codestream:
    precision, height, width, components = body[0], _number(body, 1), _number(body, 3), body[5]
    ids = tuple(body[6 : 6 + 3 * components : 3])
    samplings = {body[7 + 3 * component] for component in range(components)}
    named = ids in ((82, 71, 66), (114, 103, 98))
    colours: Colours = ""
    certain = True
    if jfif:
        if not named or len(samplings) > 1:
            colours, certain = "ybr", codec == "jpeg"
    elif adobe >= 0:
        colours = "rgb" if adobe == 0 else "ybr"
    elif named:
        colours = "rgb"
    elif len(samplings) > 1 or (codec == "jpeg" and ids == (1, 2, 3)):
        colours = "ybr"
    return Codestream(
        codec,
        (height, width),
        components,
        precision,
        colours if components == 3 else "",
        certain and colours != "",
        taken_for_ybr=components == 3 and (jfif or (adobe != 0 if adobe >= 0 else ids != (82, 71, 66))),
    )


def without_applications(data: bytes) -> bytes:
    """Return a JPEG-LS stream without application segments, at which CharLS stops, except HP's colours (APP8)."""
    kept, at = [data[:2]], 2
    while data[at + 1] not in _CODECS:
        end = at + 2 + _number(data, at + 2)
        if data[at + 1] not in range(0xE0, 0xF0) or data[at + 4 : at + 8] == b"mrfx":
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _read_jp2(data: bytes) -> Codestream | None:
    sycc, at = False, 0
    while at + 8 <= len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if name == b"jp2c":
            stream = _read_jpeg2000(data, at + 8)
            if sycc and stream.colours == "" and stream.components == 3:
                return dataclasses.replace(stream, colours="ybr", certain=True)
            return stream
        if name == b"colr" and data[at + 8] == 1:
            sycc = int.from_bytes(data[at + 11 : at + 15], "big") == _SYCC
        # The header box contains others, which follow its eight bytes.
        at += 8 if name == b"jp2h" else max(length, 8)
    return None


def _read_jpeg2000(data: bytes, start: int) -> Codestream:
    """Read marker SIZ: Xsiz, Ysiz, XOsiz and YOsiz at 8, Csiz at 40, and of each component Ssiz, XRsiz and YRsiz."""
    right, bottom, left, top = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
    components = _number(data, start + 40)
    parts = data[start + 42 : start + 42 + 3 * components]
    subsampled = len({(parts[at + 1], parts[at + 2]) for at in range(0, 3 * components, 3)}) > 1
    colours: Colours = "rgb" if subsampled and components == 3 else ""
    precision = (parts[0] & 0x7F) + 1
    exact = left == top == 0 and parts == bytes((precision - 1, 1, 1)) and _is_reversible(data, start)
    size = (bottom - top, right - left)
    return Codestream("jpeg2000", size, components, precision, colours, subsampled, start=start, exact=exact)


def _is_reversible(data: bytes, start: int) -> bool:
    """Return whether JPEG 2000 is transformed by the 5/3 wavelet, which is one of integers, in all of its tiles.

    The header names a transformation (COD, at 13), and those of tiles may name others. Each tile begins with SOT, which
    has its length at 6. What has styles of single components (COC) or of HTJ2K (CAP) is not looked into.
    """
    at, tile = start + 2, 0
    try:
        while (marker := data[at + 1]) != _END_OF_STREAM:
            if data[at] != 0xFF or marker in (_CAP, _COC) or (marker == _COD and data[at + 13] != 1):
                return False
            if marker == _SOT:
                tile = at
            if marker != _SOD:
                at += 2 + _number(data, at + 2)
                continue
            length = int.from_bytes(data[tile + 6 : tile + 10], "big")
            if not length or tile + length >= len(data):  # the last tile, or the last of a truncated file
                return True
            if tile + length <= at:
                return False
            at = tile + length
    except IndexError:
        return False
    return True


def _number(data: bytes, at: int) -> int:
    """Read two bytes, the higher first."""
    return data[at] << 8 | data[at + 1]
