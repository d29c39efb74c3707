"""The sector of a clip: echoes change from frame to frame, and what is burnt in changes seldom or never.

Frames x_1 ... x_n are shrunk and blurred (see `awcl_jax.data.sector`). A pixel moves where it changes often:

    share of the steps t with |x_t+1 - x_t| > level    is at least `_OFTEN`

A codec changes text, too, and by more than it changes deep echoes, but only where it begins anew. The level comes from
the clip's noise sigma, and is four times what sigma leaves in such a difference. In frames with white noise, by J.
Immerkaer, "Fast noise variance estimation", Computer Vision and Image Understanding 64(2), 1996,

    sigma = median |d * N| / 0.6745 / sqrt 2,    d = x_t+1 - x_t,    N = (1, -2, 1)^T (1, -2, 1) / 6

Deep, dark echoes may not move. So what is brighter than the background is joined to what moves, except what is bright
and still, which is writing, and its surroundings, where codecs leave its shadow. The sector is that of both.
"""

import math

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from awcl_jax.data.sector import background, enlarge, sector_of, shrink

_LEVELS = (2.0, 3.0, 4.0, 6.0, 8.0)  # grey levels of a change, of which the noise of the clip chooses one
_OFTEN, _TWICE = 0.2, 2.0  # of the steps, and steps: a codec may begin anew once in a short clip
_STILL = 0.01  # of the pixels: a step in which fewer change repeats its frame
_ABOVE = 1.0  # grey levels that echoes are above the background
_WRITTEN = 20.0  # grey levels that writing is above the background, at least
_NEAR = 3  # pixels about writing, in which codecs leave its shadow
_SMALLEST = 0.1  # of the picture
_AGREE = 0.15  # of the joint sector, which moves at least
_FULL, _FULL_MOVES = 0.97, 0.8  # of the picture: the joint sector is all of it only where this much moves
_NOISE_EVERY = 4  # steps
_NOISE = np.outer([1, -2, 1], [1, -2, 1]).astype(np.float32) / 6
_UNCLIPPED = 8  # grey level from which on noise is whole


class Motion:
    """What moves in a clip, gathered frame by frame in memory that does not grow with it."""

    def __init__(self) -> None:
        self._frames = self._steps = 0
        self._noise: list[float] = []
        self._last: UInt8[np.ndarray, "h w"] | None = None
        self._last_smooth: Float32[np.ndarray, "_ _"]
        self._sum: Float32[np.ndarray, "_ _"]
        self._changes: Int32[np.ndarray, "levels _ _"]

    def add(self, frame: UInt8[np.ndarray, "h w"]) -> None:
        """Add the next frame, of the size of the first."""
        small = shrink(frame).astype(np.float32)
        smooth = cv2.blur(small, (3, 3))
        self._frames += 1
        if self._last is None:
            self._sum, self._changes = small, np.zeros((len(_LEVELS), *small.shape), np.int32)
        else:
            self._sum += small
            changed = cv2.absdiff(smooth, self._last_smooth) > np.array(_LEVELS, np.float32)[:, None, None]
            if changed[0].mean() >= _STILL:
                if self._steps % _NOISE_EVERY == 0:
                    self._noise.append(noise_of(self._last, frame))
                self._steps += 1
                self._changes += changed
        self._last, self._last_smooth = frame, smooth

    def sector(self) -> Bool[np.ndarray, "h w"] | None:
        """Return the sector of the frames so far; None if nothing moves, or too little."""
        if self._last is None or not self._steps:
            return None
        mean = self._sum / self._frames
        moves = self._moves() & (mean > background(mean) + _ABOVE)
        moving = _sector(moves)
        if moving.mean() < _SMALLEST:
            return None
        joint = _sector(moves | self._dim(mean))
        agreed = moving.sum() >= _AGREE * joint.sum() and (joint.mean() < _FULL or moving.mean() >= _FULL_MOVES)
        return enlarge(joint if agreed else moving, self._last.shape)

    def _moves(self) -> Bool[np.ndarray, "_ _"]:
        assert self._last is not None
        # Noise of single pixels after they were shrunk, blurred over nine and subtracted.
        scale = self._sum.shape[1] / self._last.shape[1]
        left = np.mean(self._noise) * math.sqrt(2) * scale / 3
        place = min(int(np.searchsorted(_LEVELS, 4 * left)), len(_LEVELS) - 1)
        return self._changes[place] >= min(self._steps, max(_TWICE, _OFTEN * self._steps))

    def _dim(self, mean: Float32[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        """Return what is brighter than the background, and neither writing nor near it."""
        level = background(mean)
        writing = (mean > level + _WRITTEN) & ~self._moves()
        near = cv2.dilate(writing.astype(np.uint8), np.ones((2 * _NEAR + 1, 2 * _NEAR + 1), np.uint8)) != 0
        return (cv2.blur(mean, (3, 3)) > level + _ABOVE) & ~near


def noise_of(one: UInt8[np.ndarray, "h w"], other: UInt8[np.ndarray, "h w"]) -> float:
    """Return the standard deviation of the white noise of two frames, in grey levels; 0 where both are black."""
    difference = cv2.subtract(other, one, dtype=cv2.CV_32F)
    # Every third pixel of every third row is enough for a median.
    left = np.abs(cv2.filter2D(difference, -1, _NOISE))[::3, ::3]
    unclipped = np.minimum(one, other)[::3, ::3] > _UNCLIPPED
    return float(np.median(left[unclipped])) / 0.6745 / math.sqrt(2) if unclipped.any() else 0.0


def _sector(echoes: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    return sector_of(cv2.blur(echoes.astype(np.float32), (3, 3)) > 1 / 3, echoes)
