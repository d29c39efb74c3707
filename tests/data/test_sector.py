"""The sector: against the phantom's own field of view, on made-up screens, and on what experts outlined."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from awcl_jax.data import sector
from awcl_jax.data.sector import _SLOPES, find_sector, left_side, mask_overlays
from awcl_jax.data.square import resize_frame
from awcl_jax.ingest.own.items import BadFileError, Picture
from awcl_jax.ingest.own.motion import noise_of
from awcl_jax.ingest.own.region import moving_sector
from awcl_jax.ingest.phantom import Frame, Scan
from awcl_jax.ingest.phantom.domains import FETUS, HEART, Domain
from awcl_jax.ingest.public.hc18 import fill_outline


def frames_of(domain: Domain) -> list[Frame]:
    """Two frames of each of thirty scans."""
    scans = [Scan(seed=0, patient=n, number=0, frame_count=2, image_size=96, domain=domain) for n in range(30)]
    return [frame for scan in scans for frame in scan.frames()]


def convex_hull(region: np.ndarray) -> np.ndarray:
    hull = np.zeros(region.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.argwhere(region)[:, ::-1].astype(np.int32)), 1)
    return hull != 0


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize("domain", [FETUS, pytest.param(HEART, marks=pytest.mark.slow)], ids=["fetus", "heart"])
def test_the_sector_is_the_phantoms_field_of_view(domain):
    exact, of_hull, lost, left, written = [], [], [], 0, 0
    for frame in frames_of(domain):
        found, field = find_sector(frame.image), frame.field.visible()
        exact.append(overlap(found, field))
        of_hull.append(overlap(found, convex_hull(field)))
        lost.append(frame.image[field & ~found].sum() / frame.image[field].sum())
        about = cv2.dilate(field.astype(np.uint8), np.ones((3, 3))) == 0  # scan conversion blurs its border by a pixel
        written += frame.image[about].sum(dtype=int)
        left += frame.image[about & found].sum(dtype=int)
    # What lies above the face of a curved array is within the hull of the field, and not in it.
    assert np.median(exact) > 0.93
    assert min(exact) > 0.85
    assert np.median(of_hull) > 0.96
    assert max(lost) < 0.01, "echoes stay"
    assert left < 0.05 * written, "writing goes"


def screen(height: int = 300, width: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Speckle in a fan, with nothing about it: the picture and the fan."""
    rows, columns = np.indices((height, width))
    x, z = columns - width / 2, rows + 60.0
    fan = (np.abs(np.arctan2(x, z)) < 0.55) & (np.hypot(x, z) > 90) & (np.hypot(x, z) < 330)
    speckle = 20 * np.random.default_rng(0).rayleigh(size=(height, width))
    return np.where(fan, np.clip(speckle, 3, 255), 0).astype(np.uint8), fan


def write(picture: np.ndarray) -> np.ndarray:
    """The picture with text, a grey bar and ticks burnt in, some of it up to the fan."""
    written = picture.copy()
    for row in range(6):
        cv2.putText(written, "Cardiac 12.5", (295, 20 + 12 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.35, 200)
    cv2.putText(written, "OB", (105, 100), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 200)
    written[40:160, 2:8] = np.linspace(255, 0, 120).astype(np.uint8)[:, None]
    written[::20, 392:396] = 150
    return written


def test_writing_about_a_fan_goes_and_the_fan_stays():
    picture, fan = screen()
    written = write(picture)
    masked = mask_overlays(written)
    inner, outer = cv2.erode(fan.astype(np.uint8), np.ones((5, 5))), cv2.dilate(convex_hull(fan) * 1.0, np.ones((9, 9)))
    np.testing.assert_array_equal(masked[inner > 0], written[inner > 0])
    assert masked[outer == 0].sum() == 0
    assert written[outer == 0].sum() > 100_000


def test_noise_about_the_fan_changes_little():
    # As JPEG and video leave it.
    picture, fan = screen()
    noise = np.random.default_rng(1).integers(0, 4, picture.shape)
    assert overlap(find_sector(np.maximum(write(picture), noise).astype(np.uint8)), convex_hull(fan)) > 0.93


def test_a_black_box_on_a_background_that_is_not_quite_black():
    # As is left where a name was taken out.
    picture, fan = screen()
    picture = np.where(fan, picture, 2).astype(np.uint8)
    picture[:20, :120] = 0
    assert overlap(find_sector(picture), convex_hull(fan)) > 0.95


def test_a_grey_bar_at_the_border_that_a_cut_off_fan_touches():
    picture, fan = screen()
    picture, fan = picture[:, 60:].copy(), fan[:, 60:]
    picture[30:175, :5] = 180
    found = find_sector(picture)
    assert overlap(found, convex_hull(fan)) > 0.97
    assert not found[30:130, :5].any()


def test_a_shadow_within_the_sector_is_of_it():
    picture, fan = screen()
    picture[150:, 180:230] = 0
    assert overlap(find_sector(picture), convex_hull(fan)) > 0.97


def test_a_rectangle_of_a_linear_array():
    picture = np.zeros((200, 260), np.uint8)
    picture[20:180, 40:230] = np.random.default_rng(0).integers(5, 120, (160, 190))
    expected = np.zeros_like(picture, bool)
    expected[20:180, 40:230] = True
    assert overlap(find_sector(picture), expected) > 0.97


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((40, 60), np.uint8),
        np.full((40, 60), 200, np.uint8),
        np.pad(np.full((3, 20), 255, np.uint8), ((5, 32), (20, 20))),  # a line of writing
        np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8),
        np.full((1, 1), 7, np.uint8),
    ],
    ids=["black", "white", "writing", "noise", "a pixel"],
)
def test_where_there_is_no_sector_nothing_is_masked(picture):
    assert find_sector(picture).mean() > 0.97
    np.testing.assert_array_equal(mask_overlays(picture)[picture.shape[0] // 2], picture[picture.shape[0] // 2])


def test_a_large_frame_has_the_sector_of_a_small_one():
    picture, _ = screen()
    large = cv2.resize(write(picture), None, fx=3, fy=3, interpolation=cv2.INTER_LINEAR)
    assert overlap(find_sector(large)[1::3, 1::3], find_sector(write(picture))) > 0.97


def test_frames_are_masked_before_they_are_resized():
    picture, _ = screen()
    written = write(picture)
    np.testing.assert_array_equal(
        resize_frame(written, 64, mask_overlays=True), resize_frame(mask_overlays(written), 64)
    )
    assert (resize_frame(written, 64, mask_overlays=True) != resize_frame(written, 64)).any()


def test_real_structures_lie_in_the_sector(real_data: Path):
    folders = {
        "HC18": (real_data / "HC18/training_set", "*_HC.png", lambda path: path.with_stem(f"{path.stem}_Annotation")),
        "USGRA": (real_data / "USGRA_SEG/train/images", "*.png", lambda path: path.parents[1] / "masks" / path.name),
    }
    for name, (folder, pattern, mask_of) in folders.items():
        outside = []
        for path in sorted(folder.glob(pattern))[::10]:
            mask = cv2.imread(str(mask_of(path)), cv2.IMREAD_GRAYSCALE)
            inside = fill_outline(mask, path.name) if name == "HC18" else mask != 0
            sector = find_sector(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
            assert 0.3 < sector.mean() < 1
            outside.append((inside & ~sector).sum() / inside.sum())
        assert np.mean(outside) < 0.002, name


def test_a_panel_beside_a_rectangle_goes():
    picture, expected = np.zeros((256, 256), np.uint8), np.zeros((256, 256), bool)
    picture[10:240, 30:180] = np.random.default_rng(0).integers(5, 120, (230, 150))
    expected[10:240, 30:180] = True
    picture[60:125, 205:250] = 90  # 8% of the rectangle's area: far more than a line of writing
    found = find_sector(picture)
    assert overlap(found, expected) > 0.97
    assert not found[:, 205:].any()


def sides_slowly(columns, rows, least):
    """The line on which most rows begin, of equal ones that of the first slope: every start on every slope is tried."""
    found = None
    for slope in _SLOPES:
        starts = columns - slope * rows
        for start in sorted(starts):
            count = sum(start <= other <= start + 2.0 for other in starts)
            if count >= least and (found is None or count > found[2]):
                found = (float(slope), float(start), count)
    return found and (*found[:2], found[2] / len(columns))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("backwards", [False, True])
def test_the_side_is_that_of_a_search_through_all_lines(seed, backwards, monkeypatch):
    if backwards:  # any bound will do, and here it makes the last slope the first to be looked at
        monkeypatch.setattr(sector, "_most_on_a_line", lambda columns, rows, some: columns.size + np.arange(some.size))
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(200, int(rng.integers(4, 60 if seed % 2 else 14)), replace=False))
    line = np.round(rows * rng.choice(_SLOPES) + 150 + rng.normal(0, rng.uniform(0, 2), rows.size))
    columns = np.where(rng.random(rows.size) < rng.uniform(0, 0.8), rng.integers(2, 200, rows.size), line).astype(int)
    for least in (1.0, 8.0, 0.5 * rows.size):
        assert left_side(columns, rows, least=least) == sides_slowly(columns, rows, least)


@pytest.mark.parametrize("apart", [1, 2, 3])
def test_no_slope_is_left_out_that_has_most_rows(apart):
    # Two lines with common rows about their crossing, and of the others about as many each.
    rng, left_out = np.random.default_rng(apart), 0
    for _ in range(100):
        rows = np.arange(160)
        slope, crossing = rng.integers(0, len(_SLOPES) - apart), rng.integers(40, 120)
        both = np.stack([_SLOPES[at] * (rows - crossing) + 300 for at in (slope, slope + apart)])
        near = np.ptp(both, axis=0) < rng.uniform(0.5, 2)
        columns = np.where(rng.random(rows.size) < 0.5, *both)
        columns = np.rint(np.where(near, both.mean(axis=0), columns)).astype(int)
        counts = np.array([sector._line_of(columns, rows, at)[1] for at in range(len(_SLOPES))])
        tried = np.zeros(len(_SLOPES), bool)
        tried[sector._slopes_to_try(columns, rows)] = True
        assert counts[~tried].max(initial=0) < counts.max()
        left_out += np.count_nonzero(~tried)
    assert left_out > 0


@pytest.mark.parametrize("height", [200, 4000, 60000])
def test_no_line_has_more_rows_than_its_bound(height):
    # Single precision has no hundredths of a pixel in the tallest.
    rng = np.random.default_rng(height)
    for slope in range(0, len(_SLOPES), 4):
        rows = np.sort(rng.choice(height, 150, replace=False))
        columns = np.rint(_SLOPES[slope] * rows + 2 * height + rng.uniform(-1, 1, rows.size)).astype(int)
        starts = np.sort(columns - _SLOPES[slope] * rows)
        most = max(starts.searchsorted(starts + 2.0, side="right") - np.arange(starts.size))
        assert most > 50
        assert sector._most_on_a_line(columns, rows, _SLOPES)[slope] >= most


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (50, 4), (20, 10), (192, 256), (33, 101)])
def test_the_background_is_numpys_percentile(size):
    # 20 x 10 pixels: it is between two of them.
    rng = np.random.default_rng(0)
    for most in (1, 7, 255):
        picture = rng.integers(0, most, size, dtype=np.uint8, endpoint=True)
        for frame in (picture, picture.astype(np.float32)):
            expected = np.float32(min(8.0, np.percentile(cv2.blur(frame, (9, 9)), 0.5)))
            assert sector.background(frame) == expected


@pytest.mark.parametrize("size", [(3, 2), (192, 256), (481, 639), (256, 300), (1200, 1)])
def test_a_sector_is_enlarged_as_opencv_enlarges_pictures(size):
    small = np.random.default_rng(0).random((192, 256)) < 0.5
    found = sector.enlarge(small, size)
    expected = np.asarray(Image.fromarray(small.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST))
    assert found.dtype == bool
    np.testing.assert_array_equal(found, expected)


def test_the_dark_half_of_a_fan_is_of_it():
    picture, fan = screen()
    rows, columns = np.indices(fan.shape)
    picture[(rows > 130) & (columns - 200 > -0.35 * (rows + 60))] = 0  # a bone's shadow, but for a strip on the left
    assert overlap(find_sector(picture), convex_hull(fan)) > 0.95


def clip(count: int = 12, *, text: bool = True, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A fan that flickers, of which the deep third is dim and rests, under text: the frames, the fan, the text."""
    _, fan = screen()
    rng = np.random.default_rng(0)
    speckle = np.stack([cv2.GaussianBlur(rng.normal(0, 300, fan.shape), (0, 0), 3) for _ in range(count)])
    frames = np.where(fan, np.clip(60 + speckle, 10, 255), 0)
    frames[:, 180:] = np.where(fan[180:], 7, 0)
    written = write(np.zeros(fan.shape, np.uint8)) * (~fan) if text else np.zeros(fan.shape, np.uint8)
    if text:
        written[278:, 100:300] = 150  # a panel, which is neither thin nor beside the fan
    frames = np.maximum(frames, written) + rng.normal(0, noise, frames.shape)
    return np.clip(np.round(frames), 0, 255).astype(np.uint8), fan, written > 0


def sector_of_clip(frames: np.ndarray) -> np.ndarray:
    return moving_sector([Picture(frame) for frame in frames], frames[0].shape)


@pytest.mark.parametrize("noise", [0.0, 1.5, 9.0])
@pytest.mark.parametrize("count", [4, 12])
def test_the_sector_of_a_clip_has_its_dark_part_and_no_text(count, noise):
    frames, fan, text = clip(count, noise=noise)
    found = sector_of_clip(frames)
    assert overlap(found, convex_hull(fan)) > 0.93
    assert (found & text).sum() < 0.01 * text.sum()


@pytest.mark.parametrize("count", [5, 12])
def test_text_that_a_codec_draws_anew_once_is_no_echo(count):
    frames, _, text = clip(count)
    frames[count // 2 :, text] //= 2
    assert (sector_of_clip(frames) & text).sum() < 0.01 * text.sum()


def test_a_frame_that_is_repeated_counts_once():
    frames, _, _ = clip()
    np.testing.assert_array_equal(sector_of_clip(np.repeat(frames, 9, axis=0)), sector_of_clip(frames))


def test_a_panel_at_rest_that_fills_the_picture_is_no_sector():
    frames, fan, _ = clip(text=False)
    found = sector_of_clip(np.where(fan | (np.indices(fan.shape)[1] % 50 == 0), frames, 18))
    assert not found[:60, :60].any()
    assert overlap(found, convex_hull(fan)) > 0.6, "the part that moves is kept"


def test_a_clip_that_is_cut_to_its_sector_is_kept_whole():
    frames = np.random.default_rng(0).integers(30, 250, (6, 120, 160), np.uint8)
    assert sector_of_clip(frames).mean() > 0.99


def test_a_clip_that_rests_has_no_sector():
    frames, _, _ = clip(1)
    for still in (frames, np.repeat(frames, 9, axis=0)):
        with pytest.raises(BadFileError) as caught:
            sector_of_clip(still)
        assert caught.value.kind == "no_motion"


@pytest.mark.parametrize("sigma", [1.0, 2.0, 4.0])
def test_noise_is_measured_beside_echoes_that_move(sigma):
    rng = np.random.default_rng(0)
    drawn = [cv2.GaussianBlur(rng.uniform(60, 180, (300, 300)), (0, 0), 3) for _ in range(2)]  # other echoes
    one, other = (np.round(image + rng.normal(0, sigma, image.shape)).astype(np.uint8) for image in drawn)
    assert noise_of(one, other) == pytest.approx(np.hypot(sigma, 12**-0.5), rel=0.1), "with that of rounding"
    assert noise_of(one // 100, other // 100) == 0, "black tells nothing"
