"""Check by headers alone whether a clip's file is whole: as long as its container says, and without a hole.

FFmpeg plays what is left of a truncated file, and skips what a disk or a copy has filled with zeros, for most
containers without a warning. The check follows the length that each part of a file states to where the next begins:

    Matroska, WebM   the size of every element, of those inside of the recording, too
    MP4, MOV         the size of every box, and of those inside a fragment's table
    AVI, WebP        the size of every RIFF chunk, and of an AVI's frames
    WMV (ASF)        the size of the objects, and the first byte of the data packets, which are of one size
    MPEG             the length of every packet of a program stream
    MPEG-TS          packets of one length, each with its first byte
    FLV              the size of every tag
    GIF              the blocks, and the byte that ends them

Zeros after the end are padding, and so are a few between two parts, as VLC and Video CDs have them. A file truncated
between two parts of a live recording, or between two packets of MPEG-TS, cannot be distinguished from a complete one;
nor can a hole within the data of one frame, here.
"""

import io
import os
import re
from typing import BinaryIO

_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675  # elements of Matroska that may be of unknown size
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_AVI_FRAME = re.compile(rb"\d\d[a-z]{2}|LIST|JUNK|idx1|ix\d\d")
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_CORRECTION = b"\x82"  # the first byte of a packet with the data for error correction
_TS_LENGTHS = {0: 188, 4: 192}  # offset of the first synchronisation byte -> length of a packet
_TS_SYNC = b"\x47"
_PACK, _END = 0xBA, 0xB9  # start codes of a program stream
_AT_ONCE = 1 << 20  # bytes
_MOST_PADDING = 64  # bytes between two parts
_GIF_IMAGE, _GIF_EXTENSION, _GIF_END = 0x2C, 0x21, 0x3B


def is_broken(file: BinaryIO | io.BytesIO) -> bool:
    """Return whether a file ends before its container does or has a hole; False for containers without lengths.

    The file is left at its beginning.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(16)
    walk = None
    if head.startswith(_EBML):
        walk = _matroska
    elif head[4:8] in _FIRST_BOXES:
        walk = _boxes
    elif head.startswith(b"RIFF"):
        walk = _riff
    elif head == _ASF_HEADER:
        walk = _asf
    elif head.startswith(b"\0\0\1\xba"):
        walk = _program_stream
    elif head.startswith(b"FLV\1"):
        walk = _flv
    elif head.startswith((b"GIF87a", b"GIF89a")):
        walk = _gif
    elif _TS_SYNC in head[:5]:
        walk = _transport_stream
    file.seek(0)
    broken = walk(file, size) if walk else False
    file.seek(0)
    return broken


def _read_at(file: BinaryIO | io.BytesIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _has_bytes(file: BinaryIO | io.BytesIO, start: int, end: int) -> bool:
    """Return whether anything but zeros lies between two places."""
    file.seek(start)
    while start < end:
        part = file.read(min(end - start, _AT_ONCE))
        if not part:
            return False
        if part.strip(b"\0"):
            return True
        start += len(part)
    return False


def _after_padding(file: BinaryIO | io.BytesIO, at: int) -> int:
    """Return the place after a few zeros; the same if there are none, or too many."""
    zeros = _read_at(file, at, _MOST_PADDING + 1)
    return at + (len(zeros) - len(zeros.lstrip(b"\0"))) % (_MOST_PADDING + 1)


def _matroska(file: BinaryIO | io.BytesIO, size: int) -> bool:
    at = 0
    while at < size:
        file.seek(at)
        if file.read(1) == b"\0":  # no element begins like this: padding, or a hole
            return _has_bytes(file, at, size)
        file.seek(at)
        identifier, length = _variable(file, keep_marker=True), _variable(file, keep_marker=False)
        if identifier is None or length is None:
            return True
        at = file.tell()
        unknown = length[0] == (1 << 7 * length[1]) - 1
        if identifier[0] in (_SEGMENT, _CLUSTER):
            if not unknown and at + length[0] > size:
                return True
            continue  # its elements follow
        if unknown:
            return False
        at += length[0]
    return at > size


def _variable(file: BinaryIO | io.BytesIO, *, keep_marker: bool) -> tuple[int, int] | None:
    """Read an EBML number and its number of bytes; None if the file ends in it or there is none."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    count = 9 - first[0].bit_length()
    rest = file.read(count - 1)
    if len(rest) < count - 1:
        return None
    value = int.from_bytes(first + rest)
    return (value if keep_marker else value & ((1 << 7 * count) - 1)), count


def _boxes(file: BinaryIO | io.BytesIO, size: int) -> bool:
    at, in_fragment = 0, False
    while at + 8 <= size:
        head = _read_at(file, at, 16)
        length, kind = int.from_bytes(head[:4]), head[4:8]
        if length == 0 and any(kind):
            return False  # up to the end of the file
        if length == 1:
            length = int.from_bytes(head[8:16])
        if length < 8:
            return _has_bytes(file, at, size)
        if kind in (b"moof", b"mdat"):  # a fragment's table is followed by its samples
            in_fragment = kind == b"moof"
        at += 8 if kind in (b"moof", b"traf") else length
    return at > size or in_fragment or _has_bytes(file, at, size)


def _riff(file: BinaryIO | io.BytesIO, size: int) -> bool:
    at = 0
    while at + 12 <= size:
        head = _read_at(file, at, 12)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or length in (0, 2**32 - 1):
            return False  # what follows is not a chunk, or was never filled in
        if head[8:] in (b"AVI ", b"AVIX") and _avi_has_hole(file, at + 12, min(at + 8 + length, size)):
            return True
        at += 8 + length
    # A last byte of padding, which no one reads, may be missing, and some recorders count the header's eight, too.
    return at > size + 9


def _avi_has_hole(file: BinaryIO | io.BytesIO, at: int, end: int) -> bool:
    length, in_frames = 0, False
    while at + 8 <= end:
        if length % 2 and _AVI_FRAME.match(_read_at(file, at - 1, 4)):
            at -= 1  # some recorders leave out the byte that makes a length even
        head = _read_at(file, at, 12)
        name, form = head[:4], head[8:] if head[:4] == b"LIST" else b""
        if not all(32 <= letter < 127 for letter in name + form):
            following = _after_padding(file, at)
            known = _AVI_FRAME.match(_read_at(file, following, 4))
            # A frame before the list of frames: the head of that list is gone.
            if following == at or known is None or (known[0][:1].isdigit() and not in_frames):
                return _has_bytes(file, at, end)
            at, length = following, 0
            continue
        length = int.from_bytes(head[4:8], "little")
        in_frames |= form == b"movi"
        at += 12 if form in (b"movi", b"rec ") else 8 + length + length % 2
    return False


def _asf(file: BinaryIO | io.BytesIO, size: int) -> bool:
    at, packet = 0, 0
    while at + 24 <= size:
        file.seek(at)
        kind, length = file.read(16), int.from_bytes(file.read(8), "little")
        if kind == _ASF_HEADER:
            header = file.read(min(length, 1 << 20))
            if (found := header.find(_ASF_FILE)) >= 0:
                # Of its properties the smallest packet size, which equals the largest.
                packet = int.from_bytes(header[found + 92 : found + 96], "little")
        if kind == _ASF_DATA and packet > 0 and _read_at(file, at + 50, 1) == _ASF_CORRECTION:
            # Without the data for error correction, packets begin in many ways.
            end = min(at + length, size) if length > 50 else size
            if _loses_step(file, at + 50, end, packet):
                return True
        if kind == _ASF_DATA and length <= 50:  # never filled in: packets to the end
            return packet > 0 and (size - at - 50) % packet != 0
        if length < 24:
            return False
        at += length
    return at > size


def _transport_stream(file: BinaryIO | io.BytesIO, size: int) -> bool:
    head = file.read(5)
    for sync, length in _TS_LENGTHS.items():
        if head[sync : sync + 1] == _TS_SYNC == _read_at(file, sync + length, 1):
            return _loses_step(file, sync, size, length) or _has_bytes(file, size - size % length, size)
    return False


def _loses_step(file: BinaryIO | io.BytesIO, start: int, end: int, length: int) -> bool:
    """Return whether packets of one length stop to begin with the byte of the first one; False if zeros follow."""
    first = _read_at(file, start, 1)
    at_once = length * max(1, _AT_ONCE // length)
    for at in range(start, end, at_once):
        begins = _read_at(file, at, min(at_once, end - at))[::length]
        if others := begins.lstrip(first):
            return _has_bytes(file, at + length * (len(begins) - len(others)), end)
    return False


def _program_stream(file: BinaryIO | io.BytesIO, size: int) -> bool:
    at = 0
    while at + 4 <= size:
        head = _read_at(file, at, 14)
        if head[:3] != b"\0\0\1":
            following = _after_padding(file, at)
            if following < at + 3 or _read_at(file, following, 1) != b"\1":
                return _has_bytes(file, at, size)
            at = following - 2
            continue
        code = head[3]
        if code == _END:
            return False
        if code == _PACK:
            if len(head) < 12:
                return True
            if head[4] >> 6 == 1:  # MPEG-2
                at += 14 + (head[13] & 7 if len(head) == 14 else 0)
            else:
                at += 12
            continue
        length = int.from_bytes(head[4:6])
        if len(head) < 6:
            return True
        at += 6 + length
    return at > size or _has_bytes(file, at, size)


def _flv(file: BinaryIO | io.BytesIO, size: int) -> bool:
    file.seek(5)
    at = int.from_bytes(file.read(4)) + 4
    while at + 11 <= size:
        head = _read_at(file, at, 4)
        if not head[0]:  # no tag
            break
        at += 11 + int.from_bytes(head[1:]) + 4
    return at > size or _has_bytes(file, at, size)


def _gif(file: BinaryIO | io.BytesIO, size: int) -> bool:
    file.seek(10)
    flags = file.read(3)[:1]
    if not flags:
        return True
    file.seek(13 + _colours(flags[0]))
    while file.tell() < size:
        kind = file.read(1)[0]
        if kind == _GIF_END:
            return False
        if kind == _GIF_IMAGE:
            head = file.read(9)
            if len(head) < 9:
                return True
            file.seek(_colours(head[8]) + 1, os.SEEK_CUR)
        elif kind == _GIF_EXTENSION:
            file.seek(1, os.SEEK_CUR)
        elif kind:  # 0 is padding between blocks
            return True
        if kind:
            while length := (file.read(1) or b"\0")[0]:
                file.seek(length, os.SEEK_CUR)
    return True


def _colours(flags: int) -> int:
    """Return the bytes of a colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
