"""The sector that is found is that of a search without shortcuts, pixel for pixel."""

import cv2
import numpy as np
import pytest

from awcl_jax.data.sector import find_sector, shrink
from tests.helpers.slow_sector import sector_slowly, shrink_slowly

SIZES = [(121, 97), (150, 200), (200, 320)]  # the last is shrunk to 4/5
LARGE = [(480, 640), (360, 640)]  # to 2/5


def fan(size: tuple[int, int], *, half: int = 40, apex: float = 0.5) -> np.ndarray:
    """The pixels of a fan whose sides are `half` degrees off the vertical."""
    height, width = size
    inside = np.zeros(size, np.uint8)
    at = (round(apex * width), -height // 20)
    cv2.ellipse(inside, at, (height, height), 0, 90 - half, 90 + half, 1, -1)
    return inside != 0


def speckle(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    drawn = cv2.GaussianBlur(rng.rayleigh(40, size).astype(np.float32), (0, 0), 1.5)
    return np.clip(drawn, 0, 255).astype(np.uint8)


def with_specks(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(picture.shape) < 0.01, 255, picture).astype(np.uint8)


def with_writing(picture: np.ndarray) -> np.ndarray:
    written = picture.copy()
    cv2.putText(written, "Cardiac 3.5 MHz", (2, picture.shape[0] // 6), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 220)
    return written


def with_rows_blank(picture: np.ndarray) -> np.ndarray:
    blank = picture.copy()
    blank[:: max(2, len(picture) // 7)] = 0
    blank[len(picture) // 2 : len(picture) // 2 + 12] = 0
    return blank


def pictures(size: tuple[int, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(size[0])
    height, width = size
    echoes, black = speckle(size, rng), np.zeros(size, np.uint8)
    sector = np.where(fan(size), echoes, 0).astype(np.uint8)
    two = black.copy()  # of one size, so that neither is the largest
    two[height // 4 : 3 * height // 4, width // 8 : 3 * width // 8] = 90
    two[height // 4 : 3 * height // 4, 5 * width // 8 : 7 * width // 8] = 90
    shadows = {}
    for tenths in (4, 5, 6, 7):  # of the height
        shadows[tenths] = sector.copy()
        shadows[tenths][tenths * height // 10 :, 2 * width // 5 :] = 0
    islands = black.copy()
    islands[height // 3 : 9 * height // 10, width // 6 : 5 * width // 6] = 90
    for edge, x in ((height // 12, 2 * width // 6), (height // 6, 3 * width // 6)):  # 2% and 9% of that
        islands[height // 20 : height // 20 + edge, x : x + edge] = 100
    bar = sector.copy()
    bar[height // 5 : height // 2, : width // 50 + 1] = 180
    return {
        "a fan": sector,
        "a fan with writing": with_writing(sector),
        "a fan with specks": with_specks(sector, rng),
        "a fan with a grey bar at the border": bar,
        "a rectangle below small parts": islands,
        **{f"a fan, half of it dark from {tenths} tenths": shadow for tenths, shadow in shadows.items()},
        "a fan with blank rows": with_rows_blank(sector),
        "a fan on grey": np.maximum(sector, 7),
        "a fan in noise": np.maximum(sector, rng.integers(0, 4, size, np.uint8)),
        "a fan in two greys": np.where(fan(size), 2 * (echoes // 60), 0).astype(np.uint8),
        "a fan of one grey": np.where(fan(size, half=30), 9, 8).astype(np.uint8),
        "a fan cut off by the border": np.where(fan(size, half=60, apex=0.15), echoes, 0).astype(np.uint8),
        "a narrow fan": np.where(fan(size, half=15), echoes, 0).astype(np.uint8),
        "two parts of one size": two,
        "stripes": np.where(np.arange(width) % 24 < 14, echoes, 0).astype(np.uint8),
        "specks": with_specks(black, rng),
        "noise": rng.integers(0, 256, size, np.uint8),
        "dark noise": rng.integers(0, 3, size, np.uint8),
        "noise of two greys": rng.choice(np.array([0, 255], np.uint8), size),
        "black": black,
        "white": np.full(size, 255, np.uint8),
        "echoes everywhere": echoes,
    }


def slow(sizes: list[tuple[int, int]]) -> list[object]:
    return [pytest.param(size, marks=pytest.mark.slow) for size in sizes]


@pytest.mark.parametrize("size", SIZES + slow(LARGE), ids=str)
def test_the_sector_is_that_of_a_search_without_shortcuts(size):
    for name, picture in pictures(size).items():
        assert (find_sector(picture) == sector_slowly(picture)).all(), name


def test_a_sector_is_found_in_some_of_these_pictures_and_not_in_others():
    shares = {name: find_sector(picture).mean() for name, picture in pictures(LARGE[0]).items()}
    assert sum(share < 0.9 for share in shares.values()) >= 12
    assert sum(share == 1 for share in shares.values()) >= 4


@pytest.mark.parametrize(
    "size", [(480, 640), (3, 640), (1280, 5), *slow([(450, 600), (600, 800), (720, 960)])], ids=str
)
def test_a_shrunk_pixel_is_the_mean_of_what_it_covers(size):
    rng = np.random.default_rng(0)
    for picture in (
        rng.integers(0, 256, size, np.uint8),
        rng.integers(0, 2, size, np.uint8),
        rng.choice(np.array([0, 255], np.uint8), size),
        rng.integers(0, 256, (size[0], size[1] + 9), np.uint8)[:, 9:],  # of a larger picture
    ):
        np.testing.assert_array_equal(shrink(picture), shrink_slowly(np.ascontiguousarray(picture)))


@pytest.mark.parametrize("odd", range(3, 500, 31))
def test_a_picture_is_shrunk_as_opencv_does(odd):
    # Ratios with an odd numerator, which are worked out here, and others, which are not.
    rng = np.random.default_rng(odd)
    for height in (odd, 2 * odd, 16 * odd, 257, 300):
        picture = rng.integers(0, 256, (height, 480 + odd % 7), np.uint8)
        small = shrink(picture)
        expected = cv2.resize(picture, small.shape[::-1], interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(small, expected)
        assert max(small.shape) == 256
