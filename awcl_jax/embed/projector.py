"""Features as a folder for an embedding viewer: TensorFlow's Embedding Projector, alone or in TensorBoard.

    vectors.tsv            a row of numbers for each frame
    metadata.tsv           a row of labels for each frame, below their names
    sprite.png             a small picture of each frame, in rows of a square
    projector_config.pbtxt how these belong together, for `tensorboard --logdir FOLDER`

The format: https://www.tensorflow.org/tensorboard/tensorboard_projector_plugin and
https://github.com/tensorflow/tensorboard/blob/master/tensorboard/plugins/projector/projector_config.proto
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from awcl_jax.embed.table import matrix
from awcl_jax.runtime.files import atomic_folder
from awcl_jax.runtime.formulas import without_formula

MOST_FRAMES = 10_000
"""Frames that a viewer can lay out; of more, so many are written, evenly spread."""

_EDGE = 64  # of a picture, in pixels, unless the sprite would be too large
_LARGEST_SPRITE = 8192  # pixels, that a browser can show

_CONFIG = """\
embeddings {{
  tensor_name: "features"
  tensor_path: "vectors.tsv"
  metadata_path: "metadata.tsv"
  sprite {{
    image_path: "sprite.png"
    single_image_dim: {edge}
    single_image_dim: {edge}
  }}
}}
"""


class Projector:
    """A collector of frames with their features, which it writes as a folder in the end.

        projector = Projector()
        for images, table in batches:
            projector.see(images)
            consume(projector.passing(table))
        projector.write(Path("folder"))

    It holds all features and a small picture of each frame in memory.
    """

    def __init__(self) -> None:
        self._pictures: list[UInt8[np.ndarray, "edge edge"]] = []
        self._tables: list[pa.Table] = []

    def see(self, images: UInt8[np.ndarray, "b h w"]) -> None:
        """Keep a small picture of each of these frames, which are the next ones."""
        self._pictures.extend(_shrunk(image, _EDGE) for image in images)

    def passing(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield tables of labels and `features`, and keep them."""
        for table in tables:
            self._tables.append(table)
            yield table

    def write(self, folder: Path) -> int:
        """Write what was kept; the folder appears when it is complete.

        Columns that are lists, such as neighbours, are left out of the labels.

        Args:
          folder: it must not exist.

        Returns:
          The number of frames in it.

        Raises:
          OSError: it cannot be written.
        """
        table = pa.concat_tables(self._tables)
        assert table.num_rows == len(self._pictures)
        rows = np.unique(np.linspace(0, table.num_rows - 1, min(table.num_rows, MOST_FRAMES)).round().astype(int))
        table, pictures = table.take(pa.array(rows)), [self._pictures[row] for row in rows.tolist()]
        edge = min(_EDGE, _LARGEST_SPRITE // math.ceil(math.sqrt(rows.size)))
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as part:
            np.savetxt(part / "vectors.tsv", matrix(table, "features"), fmt="%.8g", delimiter="\t")
            (part / "metadata.tsv").write_text(_labels(table), encoding="utf-8")
            (part / "sprite.png").write_bytes(cv2.imencode(".png", _sprite(pictures, edge))[1].tobytes())
            (part / "projector_config.pbtxt").write_text(_CONFIG.format(edge=edge))
        return int(rows.size)


def _shrunk(image: UInt8[np.ndarray, "h w"], edge: int) -> UInt8[np.ndarray, "edge edge"]:
    smaller = min(image.shape) >= edge
    shrunk = cv2.resize(image, (edge, edge), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return np.asarray(shrunk, np.uint8)


def _sprite(pictures: list[UInt8[np.ndarray, "h w"]], edge: int) -> UInt8[np.ndarray, "side side"]:
    """Return pictures in rows of a square, each `edge` x `edge`; what is left is black."""
    across = math.ceil(math.sqrt(len(pictures)))
    sprite = np.zeros((across * edge, across * edge), np.uint8)
    for i, picture in enumerate(pictures):
        y, x = divmod(i, across)
        sprite[y * edge : (y + 1) * edge, x * edge : (x + 1) * edge] = _shrunk(picture, edge)
    return sprite


def _labels(table: pa.Table) -> str:
    """Return the columns without lists as tab-separated lines; only several columns have a line of names."""
    names = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    lines = [names] if len(names) > 1 else []
    lines += [list(row) for row in zip(*(table[name].to_pylist() for name in names), strict=True)]
    return "".join("\t".join(map(_cell, line)) + "\n" for line in lines)


def _cell(value: object) -> str:
    """Return a value on one line, without tabs, that a spreadsheet does not run."""
    return "" if value is None else str(without_formula(" ".join(str(value).split())))
