"""EchoNet-Dynamic: left ventricles at end diastole and end systole, in the publisher's layout, as a TFDS dataset.

FileList.csv           a row for each video: FileName (without .avi), Split (TRAIN, VAL or TEST), and more
VolumeTracings.csv     FileName, X1, Y1, X2, Y2, Frame: chords across the left ventricle on two frames of each video
Videos/*.avi           four-chamber views

The first chord of a frame is the ventricle's long axis; the ends of the others are its outline, which is filled as the
publisher's code does. End diastole is the frame with the larger area. The publication counts each video as a patient.
"""

import collections
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, UInt8

from awcl_jax.data.anatomy import APICAL_VIEWS
from awcl_jax.data.images import find_named
from awcl_jax.data.png import encode_png, require_content, to_grey
from awcl_jax.data.record import frame_features
from awcl_jax.ingest.public.folder import FolderBuilder, Found, accept_missing, record_of
from awcl_jax.ingest.public.tables import number, read_table, require_known
from awcl_jax.runtime.errors import InputError

MASKS = ("background", "left ventricle")
SPLITS = {"TRAIN": "train", "VAL": "val", "TEST": "test"}

_CORNERS = ("X1", "Y1", "X2", "Y2")
_LEAST_CHORDS = 3  # the long axis and two across it

_CITATION = """\
@article{ouyang2020,
  title = {Video-based {AI} for beat-to-beat assessment of cardiac function},
  author = {Ouyang, David and He, Bryan and Ghorbani, Amirata and Yuan, Neal and Ebinger, Joseph and
            Langlotz, Curtis P. and Heidenreich, Paul A. and Harrington, Robert A. and Liang, David H. and
            Ashley, Euan A. and Zou, James Y.},
  journal = {Nature},
  volume = {580},
  pages = {252--256},
  year = {2020},
  doi = {10.1038/s41586-020-2145-8},
}"""

Chords = Float[np.ndarray, "chords 4"]


class EchonetDynamic(FolderBuilder):
    """TFDS builder of EchoNet-Dynamic; see `awcl_jax.data.record` for the record, `FolderBuilder` to make."""

    HOMEPAGE = "https://echonet.github.io/dynamic"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The two traced frames of each video, in the publisher's split."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return self.describe(
            description="Four-chamber views of adult hearts at end diastole and end systole, with masks of the left "
            "ventricle. A video is a scan and a patient; pixel sizes and machines are not published.",
            features=frame_features(APICAL_VIEWS, mask_names=MASKS),
            license="Stanford University dataset research use agreement (non-commercial)",
            citation=_CITATION,
        )

    def find(self, source: Path) -> tuple[list[Found], list[str]]:
        splits, tracings = _read_videos(source), read_tracings(source)
        if strangers := [video for video in tracings if video not in splits]:
            raise InputError(f"{source}/VolumeTracings.csv traces {strangers[0]}, which FileList.csv does not list.")
        found: list[Found] = []
        missing: list[str] = []
        for video, split in splits.items():
            path, traced = find_named(source / "Videos", f"{video}.avi"), tracings.get(video, {})
            if len(traced) < 2 or not path.is_file():
                missing.append(video)
                continue
            areas = {frame: area(chords) for frame, chords in traced.items()}
            both = max(areas, key=areas.__getitem__), min(areas, key=areas.__getitem__)
            for moment, frame in zip(("ED", "ES"), both, strict=True):
                read = functools.partial(_record, f"{video}_{moment}", video, path, both, frame, traced[frame])
                found.append(Found(f"{video}_{moment}", video, split, read))
        accept_missing(
            [f"{video}.avi" for video in missing],
            found=found,
            skip=self.skip_missing,
            what=f"{source} lacks the file in Videos/, or the tracing of two frames, of {len(missing):,} video(s) (of "
            f"{len(splits):,})",
        )
        return found, missing


def read_tracings(source: Path) -> dict[str, dict[int, Chords]]:
    """Return the chords of each traced frame of each video, the long axis first.

    Raises:
      InputError: VolumeTracings.csv is missing or not in the publisher's layout, or a frame has too few chords.
    """
    chords: dict[str, dict[int, list[list[float]]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for place, cells in read_table(source / "VolumeTracings.csv", ("FileName", *_CORNERS, "Frame")):
        if not cells["Frame"].isdecimal():
            raise InputError(f"{place}: Frame must be a whole number >= 0; got {cells['Frame']!r}.")
        video = _video_of(cells)
        chords[video][int(cells["Frame"])].append([number(cells, corner, place) for corner in _CORNERS])
    for video, frames in chords.items():
        for frame, of_frame in frames.items():
            if len(of_frame) < _LEAST_CHORDS:
                raise InputError(
                    f"{source}/VolumeTracings.csv must have at least {_LEAST_CHORDS} chords for frame {frame} of "
                    f"{video}; got {len(of_frame)}."
                )
    return {
        video: {frame: np.array(of_frame) for frame, of_frame in frames.items()} for video, frames in chords.items()
    }


def _video_of(cells: Mapping[str, str]) -> str:
    """Return the name of a row's video, which the two tables have with and without its ending."""
    return re.sub(r"\.avi$", "", cells["FileName"], flags=re.IGNORECASE)


def outline(chords: Chords) -> Float[np.ndarray, "points 2"]:
    """Return points (x, y) around the ventricle: down one end of the chords across it, and up the other."""
    return np.concatenate([chords[1:, :2], chords[:0:-1, 2:]])


def area(chords: Chords) -> float:
    """Return the square pixels within the outline, by the shoelace formula."""
    x, y = outline(chords).T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def fill_outline(chords: Chords, *, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Return the pixels whose centre is in or on the outline, its points rounded to pixels as in the publisher's code.

    From inside, a ray to the right crosses an odd number of edges. All numbers are integers, so this is exact.
    """
    points = np.rint(outline(chords)).astype(int)
    y, x = np.indices(size)
    inside, edge = np.zeros(size, bool), np.zeros(size, bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
        side = (bx - ax) * (y - ay) - (by - ay) * (x - ax)  # 0 on the line through a and b
        within = (np.minimum(ax, bx) <= x) & (x <= max(ax, bx)) & (np.minimum(ay, by) <= y) & (y <= max(ay, by))
        edge |= (side == 0) & within
        inside ^= ((ay > y) != (by > y)) & ((side > 0) == (by > ay))
    return inside | edge


def _read_videos(source: Path) -> dict[str, str]:
    """Return the split of each video."""
    videos: dict[str, str] = {}
    for place, cells in read_table(source / "FileList.csv", ("FileName", "Split")):
        video = _video_of(cells)
        split = cells["Split"].upper()  # copies of the table have it in small letters
        require_known("Split", split, tuple(SPLITS), place)
        if not video or Path(video).name != video or video in videos:
            raise InputError(
                f"{place}: FileName must be a file in Videos/, in one row only; got {cells['FileName']!r}."
            )
        videos[video] = SPLITS[split]
    return videos


def _record(name: str, video: str, path: Path, both: tuple[int, int], frame: int, chords: Chords) -> dict[str, Any]:
    picture = _read_frames(path, both)[frame]
    require_content(picture, f"{path}, frame {frame},")
    return record_of(
        name,
        image=encode_png(picture),
        patient_id=video,
        fine="4CH",
        coarse="heart",
        mask=fill_outline(chords, size=picture.shape).astype(np.uint8) * MASKS.index("left ventricle"),
    )


@functools.lru_cache(maxsize=1)  # the two frames of a video are read in turn
def _read_frames(path: Path, frames: tuple[int, ...]) -> dict[int, UInt8[np.ndarray, "h w"]]:
    """Read some frames of a video, counted from 0.

    Raises:
      InputError: the video cannot be decoded, or is shorter.
    """
    video = cv2.VideoCapture(str(path))
    read: dict[int, np.ndarray] = {}
    try:
        # In sequence: not every codec finds a frame by its number.
        for frame in range(max(frames) + 1):
            whole, picture = video.read()
            if not whole:
                raise InputError(
                    f"{path} is broken: frame {max(frames)} is needed, but only {frame} frame(s) can be decoded."
                )
            if frame in frames:
                read[frame] = to_grey(picture)
    finally:
        video.release()
    return read
