"""A map of frames to explore: the place of each, its nearest neighbours, and a small picture of it.

It is stored in one file of a run's folder, so that the run's page can be made again without its data and encoder.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int, Int32, Shaped, UInt8
from threadpoolctl import threadpool_limits

from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.selection import Split, Splits
from awcl_jax.evaluate.frozen import Features
from awcl_jax.evaluate.neighbours import Neighbours, nearest_by_scan
from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.runtime.files import atomic_write, require_honest_zip

MAP_FILE = "embedding_map.npz"
LABELS = ("anatomy", "scan", "machine", "split")
PER_ROW = 16  # thumbnails per row of a sheet, which has as many rows

LEAST_FOR_TSNE = 4
"""Number of frames."""
_NEIGHBOURS = 5
_QUALITY = 60  # of WebP
# Up to this many frames, thumbnails have this edge in pixels: 1.1, 0.63 and 0.30 kB each on frames of FETAL_PLANES_DB.
_MOST_BYTES = 2**26  # of a small file's arrays; the map of 1,200 frames has a few million
_EDGES = ((1_500, 96), (6_000, 64), (20_000, 40))

Drawn = Mapping[str, tuple[Split, Int[np.ndarray, " _"]]]
"""Purpose, such as `test` -> some frames of that part."""


@dataclasses.dataclass(frozen=True, eq=False)
class Label:
    """One kind of label for each frame.

    Attributes:
      codes: of each frame, into `names`; -1 where it is unknown.
      names: the names that occur.
    """

    codes: Int32[np.ndarray, " n"]
    names: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Label":
        """Make a label from a text for each frame, "" where it is unknown; names are in alphabetical order."""
        names, codes = np.unique(np.array(["", *texts], np.str_), return_inverse=True)
        return cls(codes[1:].astype(np.int32) - 1, tuple(names[1:].tolist()))


@dataclasses.dataclass(frozen=True)
class Thumbnails:
    """Small pictures of the first frames, on sheets of 16 x 16, row after row.

    Attributes:
      edge: of one, in pixels.
      count: number of frames with a thumbnail.
      sheets: WebP files.
    """

    edge: int
    count: int
    sheets: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class FrameMap:
    """n frames on a flat map.

    Attributes:
      frame_ids: of the frames.
      labels: one for each of LABELS.
      places: of the frames on the map.
      same_scan: the nearest frames of each frame's own scan, among those on the map, by cosine of the features.
      other_scans: the nearest of other scans.
      thumbnails: small pictures.
    """

    frame_ids: Shaped[np.ndarray, " n"]
    labels: Mapping[str, Label]
    places: Float32[np.ndarray, "n 2"]
    same_scan: Neighbours
    other_scans: Neighbours
    thumbnails: Thumbnails

    @classmethod
    def of(cls, drawn: Drawn, features: Features, *, seed: int) -> "FrameMap":
        """Make the map of these frames, in their order.

        Args:
          drawn: the frames.
          features: of an encoder.
          seed: of the map.

        Raises:
          InputError: a frame cannot be read.
        """
        parts = [(part.reader, frames) for part, frames in drawn.values() if len(frames)]
        values = np.concatenate([features(reader, frames) for reader, frames in parts]).astype(np.float32)
        rows = [
            _labels_of(part.index, frame) | {"split": purpose}
            for purpose, (part, frames) in drawn.items()
            for frame in frames.tolist()
        ]
        labels = {name: Label.of([row[name] for row in rows]) for name in LABELS}
        same, others = nearest_by_scan(values, labels["scan"].codes, _NEIGHBOURS)
        return cls(
            np.array([row["frame"] for row in rows], np.str_),
            labels,
            flat_map(values, seed=seed).astype(np.float32),
            same,
            others,
            _thumbnails(parts),
        )

    def save(self, path: Path) -> None:
        """Write the map; the file appears when it is complete.

        Raises:
          OSError: it cannot be written.
        """
        columns: dict[str, Any] = {"frame_ids": self.frame_ids, "places": self.places}
        for name, label in self.labels.items():
            columns |= {f"{name}_codes": label.codes, f"{name}_names": np.array(label.names, np.str_)}
        for name, found in (("same_scan", self.same_scan), ("other_scans", self.other_scans)):
            columns |= {f"{name}_frames": found.frames, f"{name}_cosines": found.cosines}
        sheets = self.thumbnails.sheets
        columns["thumbnails"] = np.array([self.thumbnails.edge, self.thumbnails.count])
        columns["sheets"] = np.frombuffer(b"".join(sheets), np.uint8)
        columns["sheet_ends"] = np.cumsum([len(sheet) for sheet in sheets], dtype=np.int64)
        with atomic_write(path) as part, part.open("wb") as file:
            np.savez_compressed(file, **columns)

    @classmethod
    def load(cls, path: Path) -> "FrameMap":
        """Read what `save` wrote.

        Raises:
          InputError: the file is not such a map.
          OSError: it cannot be read.
        """
        try:
            require_honest_zip(path, most=_MOST_BYTES)
            with np.load(path, allow_pickle=False) as stored:
                columns = {name: stored[name] for name in stored.files}
            edge, count = columns["thumbnails"].tolist()
            parts = np.split(columns["sheets"], columns["sheet_ends"])[:-1] if len(columns["sheet_ends"]) else []
            found = cls(
                columns["frame_ids"],
                {name: Label(columns[f"{name}_codes"], tuple(columns[f"{name}_names"].tolist())) for name in LABELS},
                columns["places"],
                same_scan=Neighbours(columns["same_scan_frames"], columns["same_scan_cosines"]),
                other_scans=Neighbours(columns["other_scans_frames"], columns["other_scans_cosines"]),
                thumbnails=Thumbnails(edge, count, tuple(part.tobytes() for part in parts)),
            )
            found._check()
        except (OSError, InputError):
            raise
        except Exception as error:  # a damaged file makes NumPy, zipfile and zlib raise many kinds
            raise InputError(
                f"{path} is not a map of frames ({first_line(error)}). Delete it, or run the same command again to "
                "rewrite it."
            ) from None
        return found

    def _check(self) -> None:
        n, pictures = len(self.frame_ids), self.thumbnails
        are_texts = [self.frame_ids.dtype.kind == "U"]
        for name, label in self.labels.items():
            are_texts += [isinstance(text, str) for text in label.names]
            _require_places(f"the {name} of a frame", label.codes, (n,), len(label.names))
        if not n or self.frame_ids.ndim != 1 or not all(are_texts):
            raise ValueError("its frames have no names")
        if self.places.shape != (n, 2) or self.places.dtype.kind != "f" or not np.isfinite(self.places).all():
            raise ValueError("its frames have no places")
        k = self.same_scan.frames.shape[-1]
        for near in (self.same_scan, self.other_scans):
            _require_places("a neighbour", near.frames, (n, k), n)
            if near.cosines.shape != (n, k) or near.cosines.dtype.kind != "f" or not np.isfinite(near.cosines).all():
                raise ValueError("its neighbours have no cosines")
        if not 0 < pictures.edge <= _EDGES[0][1] or not 0 <= pictures.count <= n:
            raise ValueError("its thumbnails are of no size or of no frame")


def draw_frames(selection: Splits, count: int, *, seed: int) -> Drawn:
    """Draw frames for a map: at most `count` of the test patients, and of the training and validation patients."""
    test = np.random.default_rng(seed).permutation(len(selection.test.index))[:count]
    n_train, n_val = len(selection.train.index), len(selection.val.index)
    others = np.random.default_rng([seed, 0x3A9]).permutation(n_train + n_val)[:count]
    return {
        "test": (selection.test, test),
        "validation": (selection.val, np.sort(others[others >= n_train]) - n_train),
        "training": (selection.train, np.sort(others[others < n_train])),
    }


def _require_places(what: str, codes: np.ndarray, shape: tuple[int, ...], count: int) -> None:
    if codes.shape != shape or codes.dtype.kind != "i" or (codes.size and not -1 <= codes.min() <= codes.max() < count):
        raise ValueError(f"{what} is not on the map")


def _labels_of(index: ScanIndex, frame: int) -> dict[str, str]:
    """Return the labels of a frame, "" where one is unknown."""
    fine, coarse = int(index.fine[frame]), int(index.coarse[frame])
    return {
        "frame": str(index.frame_ids[frame]),
        "anatomy": index.fine_names[fine] if fine >= 0 else index.coarse_names[coarse] if coarse >= 0 else "",
        "scan": index.scan_names[index.scans[frame]],
        "machine": index.machine_names[index.machines[frame]],
    }


def _thumbnails(parts: Sequence[tuple[FrameReader, Int[np.ndarray, " _"]]]) -> Thumbnails:
    total = sum(len(frames) for _, frames in parts)
    edge = next((edge for most, edge in _EDGES if total <= most), _EDGES[-1][1])
    edge = min(edge, *(reader.size for reader, _ in parts))
    places = [(reader, frame) for reader, frames in parts for frame in frames][: _EDGES[-1][0]]
    sheets = []
    for start in range(0, len(places), PER_ROW**2):
        images = [reader.read(np.array([frame]))[0] for reader, frame in places[start : start + PER_ROW**2]]
        sheets.append(_sheet([cv2.resize(image, (edge, edge), interpolation=cv2.INTER_AREA) for image in images]))
    return Thumbnails(edge, len(places), tuple(sheets))


def _sheet(images: Sequence[UInt8[np.ndarray, "e e"]]) -> bytes:
    edge = len(images[0])
    rows = -(-len(images) // PER_ROW)
    filled = np.zeros((rows * PER_ROW, edge, edge), np.uint8)
    filled[: len(images)] = images
    sheet = filled.reshape(rows, PER_ROW, edge, edge).swapaxes(1, 2).reshape(rows * edge, PER_ROW * edge)
    return cv2.imencode(".webp", sheet, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])[1].tobytes()


def flat_map(features: Float[np.ndarray, "n f"], *, seed: int) -> Float[np.ndarray, "n 2"]:
    """Return places on a map where frames with similar features are close together.

    Features are scaled to unit length, reduced by PCA to 50 dimensions and by t-SNE (van der Maaten & Hinton 2008) to
    two; distances between far groups on such a map mean little. Fewer than four frames are only reduced by PCA, which
    keeps their distances: t-SNE weighs neighbours against others, of which there are too few.

    Args:
      features: of the frames.
      seed: of PCA and t-SNE.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    rows = normalize(features.astype(np.float64))
    if np.ptp(rows, axis=0).max() < 1e-6:
        # A collapsed encoder: t-SNE would divide by a deviation of zero, and one point is correct.
        return np.zeros((len(rows), 2))
    flat = PCA(min(50, *rows.shape), random_state=seed).fit_transform(rows)
    start = np.zeros((len(rows), 2))
    start[:, : flat.shape[1]] = flat[:, :2]  # there may be only one column
    if len(rows) < LEAST_FOR_TSNE:
        return start
    perplexity = min(30.0, (len(rows) - 1) / 3)
    start = start / flat[:, 0].std() * 1e-4  # as the authors of t-SNE advise
    # Its threads busy-wait for each other; on two busy cores they took six times as long as one.
    with threadpool_limits(1):
        return TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(flat)
