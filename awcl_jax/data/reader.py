"""Frames by their position in the index: decoded, grey, square, and kept on disk and, when all fit, in memory."""

import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8

from awcl_jax.data import nearest, sector
from awcl_jax.data.beams import UNKNOWN, fans_of, in_square
from awcl_jax.data.decoded import DecodedFrames, open_decoded
from awcl_jax.data.fan import Fan
from awcl_jax.data.limits import MAX_PIXELS
from awcl_jax.data.png import find_png_fault, is_png, png_bits, png_size
from awcl_jax.data.record import PIXEL_HEIGHT
from awcl_jax.data.records import REMEDY, Records
from awcl_jax.data.scans import ScanIndex, dataset_key
from awcl_jax.data.square import aspect_of, fitted, resize_frame, resize_mask
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.source_digest import source_digest

LARGEST_FRAME = 4096  # pixels of an edge; more would take gigabytes for a batch
_SAMPLED = 64  # frames whose pixels are compared to detect a changed dataset
# No few pictures show every way in which another search finds other sectors. Read while the search is imported, because
# later its files may be those of another version.
_SEARCH = source_digest(sector, nearest)


class FrameReader:
    """Reads the frames of an index; safe to use from many threads.

    Args:
      index: which frames; positions below count along it.
      size: edge of the squares that frames are resized to.
      cache_mb: decoded frames stay in memory when all frames of the index fit into this many megabytes.
      mask_overlays: set pixels outside of a frame's sector to 0, see `awcl_jax.data.sector`; masks do not change.
      aspect: how frames are made square, see `awcl_jax.data.square`; by default as the dataset records.
      disk_cache_gb: decoded frames stay on disk, for later runs, too, in at most this space; 0 keeps none. See
        `awcl_jax.data.decoded`.

    Raises:
      InputError: `size` is less than 1 pixel or more than `LARGEST_FRAME`, or `cache_mb` or `disk_cache_gb` less
        than 0.
    """

    def __init__(
        self,
        index: ScanIndex,
        size: int = 96,
        cache_mb: float | int = 1024,
        *,
        mask_overlays: bool = False,
        aspect: str | None = None,
        disk_cache_gb: float | int = 0,
    ) -> None:
        if size < 1:
            raise InputError(f"size must be at least 1 pixel; got size={size}.")
        if size > LARGEST_FRAME:
            raise InputError(f"size must be at most {LARGEST_FRAME} pixels; got size={size}.")
        if cache_mb < 0:
            raise InputError(f"cache_mb must be >= 0 (0 disables the cache); got cache_mb={cache_mb}.")
        if disk_cache_gb < 0:
            raise InputError(f"disk_cache_gb must be >= 0 (0 disables it); got disk_cache_gb={disk_cache_gb}.")
        self.index = index
        self.size = size
        self.mask_overlays = mask_overlays
        self.aspect = aspect_of(index.path) if aspect is None else aspect
        self._disk_cache_gb = disk_cache_gb
        self._records = Records(index.path)
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}
        self._decoded: dict[str, DecodedFrames | None] = {}
        self._fans: tuple[tuple[Fan, ...], Int32[np.ndarray, " n"]] | None = None
        self._placed: dict[int, Float32[np.ndarray, " six"]] = {}
        self._keep = len(index) * size**2 <= cache_mb * 2**20

    def read(self, frames: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b {self.size} {self.size}"]:
        """Return the images of the frames at these positions of the index.

        Returns:
          images [b, size, size], grey.

        Raises:
          InputError: a record cannot be read or decoded, or the dataset has changed since the index was made.
          IndexError: a position is outside of the index.
        """
        return self._read("image", frames)

    def read_masks(self, frames: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b {self.size} {self.size}"]:
        """Return the masks of the frames at these positions of the index; a pixel takes the class of the nearest one.

        Returns:
          masks [b, size, size], a class id for each pixel.

        Raises:
          InputError: as `read`, or the dataset has no masks.
          IndexError: a position is outside of the index.
        """
        if not self.has_masks:
            raise InputError(f"The dataset {self.index.path} has no masks.")
        return self._read("mask", frames)

    def pixel_sizes(self, frames: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b 2"]:
        """Return the height and width in millimetres of a pixel in the squares of `read` and `read_masks`.

        A frame of h x w pixels of p millimetres is resized to h2 x w2, without bars: height p h / h2, width p w / w2.
        The two differ if a frame that is not square is squashed, so lengths are measured with both.

        Returns:
          (mm_y, mm_x) of each frame [b, 2], NaN where the publisher does not state it.

        Raises:
          InputError: as `read`.
          IndexError: a position is outside of the index.
        """
        sizes, pixels = np.empty((len(frames), 2)), np.empty((len(frames), 2))
        for row, fields in enumerate(self._fields(frames)):
            h, w = png_size(fields["image"])
            sizes[row] = fields.get(PIXEL_HEIGHT, fields["pixel_mm"]) * h, fields["pixel_mm"] * w
            pixels[row] = fitted((h, w), self.size, self.aspect)
        return sizes / pixels

    def measures(self, name: str, frames: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
        """Return a length in millimetres that the publisher measured on each frame, such as `hc_mm`.

        Returns:
          the lengths [b], NaN where a frame, or the dataset, has none.

        Raises:
          InputError: as `read`.
          IndexError: a position is outside of the index.
        """
        return np.array([fields.get(name, math.nan) for fields in self._fields(frames)], np.float64)

    def fans(self, frames: Int[np.ndarray, " b"]) -> Float32[np.ndarray, "b 6"]:
        """Return the fan of each frame in its square, as six numbers (see `awcl_jax.augment.beams`); 0 if unknown.

        Raises:
          InputError: as `read`, or the dataset's metadata cannot be read.
          IndexError: a position is outside of the index.
        """
        self._require_inside(frames)
        return np.array([self._fan(frame) for frame in frames.tolist()], np.float32).reshape(-1, UNKNOWN.size)

    def require_fans(self) -> None:
        """Raise an error unless the fan of at least one frame is known.

        Raises:
          InputError: no fan is known.
        """
        if not self._has_fans():
            raise InputError(
                f"config.augment.beams=fan needs the fans of frames, and {self.index.path} has none. Prepare your "
                "clips with --region=sector (to another --out if they are prepared already), or use "
                "--config.augment.beams=fixed."
            )

    def pixels_fingerprint(self) -> str:
        """Return a hash (16 hex digits) of the stored pixels of up to 64 frames, evenly spread over the index.

        Labels have the index's own fingerprint. This hash is of pixels, not of files: a dataset that was prepared again
        with another compression has the same.

        Raises:
          InputError: as `read`.
        """
        digest = hashlib.sha256()
        for frame in np.linspace(0, len(self.index) - 1, min(len(self.index), _SAMPLED)).round().astype(int).tolist():
            image = self._decode("image", frame)
            digest.update(f"{image.shape}".encode() + image.tobytes())
        return digest.hexdigest()[:16]

    @property
    def mask_names(self) -> tuple[str, ...]:
        """The classes of the values 0, 1, ... in the masks; empty if the dataset has no masks."""
        return tuple(self._records.info.features["mask"].names) if self.has_masks else ()

    @property
    def has_masks(self) -> bool:
        """Whether the dataset has masks."""
        return "mask" in self._records.pictures

    def _has_fans(self) -> bool:
        return bool(self._fans_of_clips()[0])

    def _fan(self, frame: int) -> Float32[np.ndarray, "6"]:
        fans, which = self._fans_of_clips()
        clip = int(which[frame])
        if clip < 0:
            return UNKNOWN
        if clip not in self._placed:
            shape = png_size(self._record(frame)[0]["image"])  # that of all frames of the clip
            self._placed[clip] = in_square(fans[clip], shape, self.size, self.aspect)
        return self._placed[clip]

    def _fans_of_clips(self) -> tuple[tuple[Fan, ...], Int32[np.ndarray, " n"]]:
        with self._lock:
            if self._fans is None:
                self._fans = fans_of(self.index)
            return self._fans

    def _read(self, picture: str, frames: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w"]:
        self._require_inside(frames)
        images = np.empty((len(frames), self.size, self.size), np.uint8)
        kept = self._kept_of(picture)
        for row, frame in enumerate(frames.tolist()):
            if kept is not None and kept.filled[frame]:
                images[row] = kept.images[frame]
                continue
            self._read_into(images[row], picture, frame)
            if kept is not None:
                # In this order: another thread that sees `filled` finds the whole image.
                kept.images[frame] = images[row]
                kept.filled[frame] = True
        return images

    def _read_into(self, out: UInt8[np.ndarray, "h w"], picture: str, frame: int) -> None:
        decoded, slot, frame_id = self._place_on_disk(picture, frame)
        if decoded is not None and decoded.read(slot, frame_id, out):
            return
        out[...] = self._resize(picture, self._decode(picture, frame))
        if decoded is not None:
            decoded.write(slot, frame_id, out)

    def _place_on_disk(self, picture: str, frame: int) -> tuple[DecodedFrames | None, int, str]:
        """Return the file of decoded frames, if there is one, and a frame's slot and name in it."""
        decoded = self._decoded_of(picture)
        if decoded is None:
            return None, 0, ""
        slot = int(self._first_slots[self.index.splits[frame]] + self.index.records[frame])
        return decoded, slot, str(self.index.frame_ids[frame])

    def _require_inside(self, frames: Int[np.ndarray, " b"]) -> None:
        if frames.size and not 0 <= frames.min() <= frames.max() < len(self.index):
            raise IndexError(f"Frames must be from 0 to {len(self.index) - 1}; got {frames.min()} to {frames.max()}.")

    def _fields(self, frames: Int[np.ndarray, " b"]) -> Iterator[dict[str, Any]]:
        """Return the records of the frames, with their pictures as they are stored."""
        self._require_inside(frames)
        return (self._record(frame)[0] for frame in frames.tolist())

    def _record(self, frame: int) -> tuple[dict[str, Any], str]:
        """Return a record, and its place for messages."""
        split, record = self.index.split_names[self.index.splits[frame]], int(self.index.records[frame])
        frame_id = str(self.index.frame_ids[frame])
        fields = self._records.read(split, record, frame_id=frame_id)
        place = self._records.place(split, record, frame_id)
        if fields["frame_id"].decode() != frame_id:
            raise InputError(
                f"Cannot read {place}: found {fields['frame_id'].decode()!r} instead. The dataset was prepared again "
                "after its index was made. Start again."
            )
        return fields, place

    def _decode(self, picture: str, frame: int) -> UInt8[np.ndarray, "h w"]:
        fields, place = self._record(frame)
        image, fault = decode_picture(picture, fields[picture])
        if image is None:
            raise InputError(f"Cannot read {place} ({fault}): {REMEDY}.")
        return image

    def _resize(self, picture: str, image: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h2 w2"]:
        if picture == "image":
            return resize_frame(image, self.size, aspect=self.aspect, mask_overlays=self.mask_overlays)
        return resize_mask(image, self.size, aspect=self.aspect)

    def _decoded_of(self, picture: str) -> DecodedFrames | None:
        if not self._disk_cache_gb:
            return None
        with self._lock:
            if picture not in self._decoded:
                counts = [self._records.count(split) for split in self.index.split_names]
                self._first_slots = np.cumsum([0, *counts])
                self._decoded[picture] = open_decoded(
                    self.index.path,
                    self._name_on_disk(picture),
                    slots=sum(counts),
                    size=self.size,
                    limit_gb=self._disk_cache_gb,
                )
            return self._decoded[picture]

    def _name_on_disk(self, picture: str) -> str:
        """Return a name that changes with the dataset, and with all that decides the pixels of a square."""
        digest = hashlib.sha256(f"{dataset_key(self.index.path)} {cv2.__version__}".encode())
        draw = np.random.default_rng(0)
        for edge in (self.size // 2 + 1, self.size + 7):
            # OpenCV may round differently on another CPU.
            digest.update(self._resize(picture, draw.integers(0, 256, (edge, 2 * edge), np.uint8)).tobytes())
        overlays = ""
        if self.mask_overlays and picture == "image":
            overlays = "-without_overlays"
            digest.update(_SEARCH.encode())
        return f"{picture}-{self.size}-{self.aspect}{overlays}-{digest.hexdigest()[:16]}"

    def _kept_of(self, picture: str) -> "_Kept | None":
        if not self._keep:
            return None
        with self._lock:
            if picture not in self._kept:
                self._kept[picture] = _Kept(len(self.index), self.size)
            return self._kept[picture]


class JoinedReader(FrameReader):
    """Reads the frames of several datasets, joined by `ScanIndex.join_unlabelled`.

    Args:
      first: index of the first frames.
      others: indexes of the frames after them.
      size, cache_mb, mask_overlays, aspect, disk_cache_gb: as of `FrameReader`; by default, the aspect of `first` is
        that of all.
    """

    def __init__(
        self,
        first: ScanIndex,
        others: Sequence[ScanIndex],
        size: int = 96,
        cache_mb: float | int = 1024,
        *,
        mask_overlays: bool = False,
        aspect: str | None = None,
        disk_cache_gb: float | int = 0,
    ) -> None:
        super().__init__(first.join_unlabelled(others), size, cache_mb, mask_overlays=mask_overlays, aspect=aspect)
        self._parts = [
            FrameReader(part, size, 0, mask_overlays=mask_overlays, aspect=self.aspect, disk_cache_gb=disk_cache_gb)
            for part in (first, *others)
        ]
        self._starts = np.cumsum([0, *(len(part.index) for part in self._parts)])

    def _record(self, frame: int) -> tuple[dict[str, Any], str]:
        part, frame = self._part_of(frame)
        return part._record(frame)

    def _place_on_disk(self, picture: str, frame: int) -> tuple[DecodedFrames | None, int, str]:
        part, frame = self._part_of(frame)
        return part._place_on_disk(picture, frame)

    def _has_fans(self) -> bool:
        return any(part._has_fans() for part in self._parts)

    def _fan(self, frame: int) -> Float32[np.ndarray, "6"]:
        part, frame = self._part_of(frame)
        return part._fan(frame)

    def _part_of(self, frame: int) -> tuple[FrameReader, int]:
        """Return the reader of a frame's dataset, and the frame's position in that."""
        part = int(np.searchsorted(self._starts, frame, side="right")) - 1
        return self._parts[part], frame - int(self._starts[part])


def decode_picture(picture: str, data: bytes) -> tuple[UInt8[np.ndarray, "h w"] | None, str]:
    """Decode the stored `image` or `mask` of a frame; return None and the reason if that fails."""
    if fault := find_png_fault(data):
        # cv2 would silently fill missing parts with black.
        return None, f"its {picture} is broken, {fault}"
    if not is_png(data):
        return None, f"its {picture} is not an 8-bit grey PNG"
    h, w = png_size(data)
    if h * w > MAX_PIXELS:
        return None, f"its {picture} has {w} x {h} pixels, more than {MAX_PIXELS:,}"
    # As they are stored: a record has no metadata that turns its image, but not its mask.
    flag = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION if picture == "image" else cv2.IMREAD_UNCHANGED
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    # In grey, cv2 silently reduces 16 bits to 8, so the header is checked.
    if decoded is None or decoded.dtype != np.uint8 or decoded.ndim != 2 or png_bits(data) > 8:
        return None, f"its {picture} is not an 8-bit grey PNG"
    return decoded, ""


class _Kept:
    """Decoded frames; memory is taken page by page as they are filled."""

    def __init__(self, count: int, size: int) -> None:
        self.images: UInt8[np.ndarray, "n h w"] = np.empty((count, size, size), np.uint8)
        self.filled: Bool[np.ndarray, " n"] = np.zeros(count, bool)
