"""The health of an encoder without labels: what it finds again, and how many dimensions it uses."""

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from awcl_jax.augment.options import Augmentation
from awcl_jax.augment.views import two_views
from awcl_jax.data.selection import Split
from awcl_jax.pretrain.monitors import effective_rank
from awcl_jax.runtime import sharding

VIEW, SCAN, RANK = "retrieval/view", "retrieval/scan", "effective_rank"
_MOST_FRAMES = 512

EncodeViews = Callable[
    [PyTree, UInt8[np.ndarray, "b h w"], Int[np.ndarray, " b"], Float[np.ndarray, "b 6"] | None], Array
]


@dataclasses.dataclass(frozen=True, eq=False)
class Health:
    """Measurements on two augmented views of validation frames, the same frames and views every time.

    Attributes:
      encode: (variables, uint8 frames [b, h, w], rows [b], fans [b, 6]) -> features [2, b, f] of two views, compiled.
      part: the validation frames.
      frames: which of them are measured.
      batch_size: frames encoded at a time.
      fans: whether the views need the fans of the frames.
    """

    encode: EncodeViews
    part: Split
    frames: Int[np.ndarray, " n"]
    batch_size: int
    fans: bool = False

    @classmethod
    def of(cls, model: nn.Module, options: Augmentation, part: Split, *, seed: int, batch_size: int) -> "Health":
        """Draw at most 512 of the frames to measure."""
        drawn = np.random.default_rng([seed, 0x4EA1]).permutation(len(part.index))[:_MOST_FRAMES]
        return cls(_encode_views(model, options, seed), part, np.sort(drawn), batch_size, options.beams == "fan")

    def measure(self, variables: PyTree) -> dict[str, float]:
        """Return `retrieval/view`, `retrieval/scan` and `effective_rank`; nothing of fewer than two frames.

        `retrieval/scan` is missing if no scan has two of the frames.
        """
        if self.frames.size < 2:
            return {}
        variables = sharding.local_copy(variables)
        encoded = []
        for start in range(0, self.frames.size, self.batch_size):
            part = self.frames[start : start + self.batch_size]
            images = self.part.reader.read(part)
            # A short batch is padded with frames that are cut off again, so that only one shape is compiled.
            filled = np.resize(images, (self.batch_size, *images.shape[1:]))
            rows = np.resize(part, self.batch_size)
            fans = self.part.reader.fans(rows) if self.fans else None
            encoded.append(np.asarray(self.encode(variables, filled, rows, fans))[:, : part.size])
        views = np.concatenate(encoded, axis=1).astype(np.float32)
        found = measures(views, self.part.index.scans[self.frames])
        return {name: value for name, value in found.items() if math.isfinite(value)}


def measures(views: Float[np.ndarray, "2 n f"], scans: Int[np.ndarray, " n"]) -> dict[str, float]:
    """Return the measurements of features of two views of n frames.

        retrieval/view = share of frames whose first view has, of all second views, its own as the nearest by cosine
        retrieval/scan = share of frames whose first view has, of the second views of other frames, one of its scan as
                         the nearest; of the frames whose scan has another frame
        effective_rank = `monitors.effective_rank` of the unit features

    The last is used as a score without labels by Garrido et al. 2023, "RankMe: Assessing the downstream performance of
    pretrained self-supervised representations by their rank" (there of the singular values).

    Args:
      views: features.
      scans: scan of each frame.
    """
    unit = views / np.maximum(np.linalg.norm(views, axis=-1, keepdims=True), 1e-12)
    cosines = unit[0] @ unit[1].T
    n = len(scans)
    # A frame is found only if no other is as near: of a collapsed encoder none is.
    own = np.diagonal(cosines)
    others = np.where(np.eye(n, dtype=bool), -np.inf, cosines)
    found = {VIEW: float((own > others.max(axis=1)).mean())}
    same = (scans[:, None] == scans) & ~np.eye(n, dtype=bool)
    if (several := same.any(axis=1)).any():
        of_scan = np.where(same, cosines, -np.inf).max(axis=1)
        of_others = np.where(scans[:, None] == scans, -np.inf, cosines).max(axis=1)
        found[SCAN] = float((of_scan > of_others)[several].mean())
    return found | {RANK: float(effective_rank(jnp.asarray(unit)))}


@lru_cache(maxsize=8)
def _encode_views(model: nn.Module, options: Augmentation, seed: int) -> EncodeViews:
    @jax.jit
    def encode(
        variables: PyTree,
        frames: UInt8[Array, "b h w"],
        rows: Int[Array, " b"],
        fans: Float[Array, "b 6"] | None,
    ) -> Float[Array, "2 b f"]:
        views = two_views(frames, rows=rows, step=0, seed=seed, options=options, fans=fans)
        features = [model.apply(variables, view, method="features") for view in views]
        return jnp.stack([jnp.asarray(of_view) for of_view in features])

    return encode
