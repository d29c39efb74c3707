"""The phantom: its physics against closed forms, its geometry against the ruler, its set against its docstring."""

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from awcl_jax.data.anatomy import FETAL_PLANES_14, UNLABELLED
from awcl_jax.ingest.phantom import Frame, Phantom, Scan, heart, planes
from awcl_jax.ingest.phantom.acoustics import (
    FWHM,
    Receiver,
    Transducer,
    compress,
    penumbra,
    point_spread,
    transmission,
)
from awcl_jax.ingest.phantom.biometry import draw_biometry, ellipse_circumference
from awcl_jax.ingest.phantom.builder import records
from awcl_jax.ingest.phantom.display import Field
from awcl_jax.ingest.phantom.domains import FETUS, HEART
from awcl_jax.ingest.phantom.examination import MACHINES, address
from awcl_jax.ingest.phantom.outlines import Bullet, Ellipse, Medium, Polygon, Rod, Tissue
from awcl_jax.ingest.phantom.planes import BONE, MASKS, PLANES
from awcl_jax.ingest.phantom.unevenness import Surface, factor

PROBE = Transducer(frequency_mhz=4.0, cycles=4.0, f_number=4.0, focus=0.5)


@pytest.fixture(scope="module")
def frames() -> list[tuple[Scan, Frame]]:
    """Frames of twenty-four scans."""
    scans = [Scan(seed=0, patient=patient, number=0, frame_count=14, image_size=96) for patient in range(24)]
    return [(scan, frame) for scan in scans for frame in scan.frames()]


@pytest.fixture(scope="module")
def tiny(phantom: Path) -> Phantom:
    return tiny_in(phantom.parents[2])


def tiny_in(folder: Path) -> Phantom:
    return Phantom(config="tiny", data_dir=folder, file_format="array_record")


def split(builder: Phantom, name: str) -> list[dict[str, Any]]:
    return list(builder.as_data_source(name))


def medium(shape: tuple[int, int, int], step_mm: float) -> Medium:
    ones = np.ones(shape, np.float32)
    return Medium(step_mm, ones.copy(), np.full(shape, 0.5, np.float32), np.zeros(shape, np.float32), texture=ones)


# Acoustics


def test_speckle_of_even_tissue_is_rayleigh() -> None:
    # Rayleigh: mean sqrt(pi / 2) s, deviation sqrt(2 - pi / 2) s; ratio 1.913.
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, 4, 200, 100)) * math.sqrt(0.5)
    echoes = point_spread(noise[0] + 1j * noise[1], transducer=PROBE, step_mm=0.5, beam_mm=np.full(200, 0.8))
    envelope = np.abs(echoes)
    assert envelope.mean() / envelope.std() == pytest.approx(math.sqrt(math.pi / (4 - math.pi)), rel=0.03)
    assert (envelope**2).mean() == pytest.approx(1.0, rel=0.05)


def test_tissue_loses_two_ways_its_attenuation() -> None:
    # 0.5 dB/cm/MHz, 4 MHz, there and back: 4 dB a centimetre.
    back = transmission(np.full((1, 101, 1), 0.5), frequency_mhz=4.0, step_mm=1.0)
    assert back[0, 0, 0] == 1.0
    assert 20 * np.log10(back[0, 100, 0]) == pytest.approx(-40.0)


def test_bone_is_bright_and_its_shadow_dark() -> None:
    tissue = medium((1, 120, 60), 0.5)
    u, v = np.meshgrid(np.arange(60, dtype=np.float32), 0.5 * np.arange(120, dtype=np.float32))
    tissue.paint(Rod([(20.0, 20.0), (30.0, 20.0)], 1.5).distance(u, v)[None], BONE)
    back = transmission(tissue.attenuation, frequency_mhz=4.0, step_mm=0.5)
    level = 20 * np.log10(back[0] * (tissue.amplitude[0] + tissue.mirror[0]))
    assert level[36:44, 25].max() > level[36:44, 5].max() + 10
    # 3 mm of bone at 14 dB/cm/MHz against soft tissue at 0.5, 4 MHz, both ways: 32.4 dB.
    assert level[80, 5] - level[80, 25] == pytest.approx(2 * 4 * 0.3 * 13.5, rel=0.15)


def test_a_surface_mirrors_only_at_a_right_angle() -> None:
    tissue = medium((1, 160, 80), 0.5)
    u, v = np.meshgrid(np.arange(80, dtype=np.float32) - 40, 0.5 * np.arange(160, dtype=np.float32) - 40)
    tissue.paint(Ellipse((0.0, 0.0), (20.0, 20.0)).distance(u, v)[None], Tissue(0.0, wall=1.0))
    top, side = tissue.mirror[0, 40, 40], tissue.mirror[0, 80, 20]
    diagonal = tissue.mirror[0, round((40 - 20 / math.sqrt(2)) / 0.5), round(40 - 20 / math.sqrt(2))]
    # cos^4: 1 at a right angle, 1/4 at 45 degrees.
    assert top == pytest.approx(1.0, abs=0.05)
    assert diagonal == pytest.approx(0.25, abs=0.06)
    assert side == pytest.approx(0.0, abs=0.01)


def test_tissue_has_as_much_of_the_texture_as_it_says() -> None:
    texture = factor(Surface(np.array([[6.0, -6.0], [0.0, 20.0]]))).values.astype(np.float32)[None]
    np.testing.assert_allclose(texture, [[[1.9953, 0.5012], [1.0, 10.0]]], rtol=1e-4)
    inside, ones = np.full((1, 2, 2), -5.0, np.float32), np.ones((1, 2, 2), np.float32)
    for uneven, expected in (
        (0.0, [[1.0, 1.0], [1.0, 1.0]]),
        (0.5, [[1.4976, 0.7506], [1.0, 5.5]]),
        (1.0, [[1.9953, 0.5012], [1.0, 10.0]]),
        (2.0, [[2.9905, 0.05], [1.0, 19.0]]),
    ):
        tissue = Medium(0.5, ones.copy(), ones.copy(), 0 * ones, texture)
        tissue.paint(inside, Tissue(-20.0, uneven=uneven))
        np.testing.assert_allclose(tissue.amplitude, 0.1 * np.array([expected]), rtol=1e-3)


def test_unevenness_is_as_strong_and_as_wide_as_it_says() -> None:
    # Blurred white noise: deviation 3, and a covariance whose half maximum is the full width apart, 2 (w / 2) / 2.
    fields = [Surface.draw(np.random.default_rng(n), ((3.0, 12.0, 6.0),), edge_mm=200.0).values for n in range(30)]
    assert np.std(fields) == pytest.approx(3.0, rel=0.05)
    for axis, half in ((2, 6), (1, 3)):
        covariance = np.mean(np.array(fields) * np.roll(fields, half, axis=axis))
        assert covariance / np.var(fields) == pytest.approx(0.5, abs=0.04)


def test_a_surface_is_interpolated_between_its_millimetres_and_repeats() -> None:
    values = np.random.default_rng(0).standard_normal((9, 9))
    u, v = np.random.default_rng(1).uniform(-12, 12, (2, 50)).astype(np.float32)
    expected = []
    for x, y in zip(u.astype(float) + 4, v.astype(float) + 4, strict=True):  # the middle of nine values is the fifth
        column, row = math.floor(x), math.floor(y)
        expected.append(
            sum(
                values[(row + i) % 9, (column + j) % 9] * abs(1 - i - (y - row)) * abs(1 - j - (x - column))
                for i in (0, 1)
                for j in (0, 1)
            )
        )
    np.testing.assert_allclose(Surface(values).at(u, v), expected, atol=1e-4)


def test_a_shadow_has_soft_edges_and_a_dark_middle() -> None:
    back = np.ones((1, 40, 81))
    back[:, 20:, 30:51] = 0  # 21 beams, 1 mm apart
    soft = penumbra(back, aperture_mm=18.0, beam_mm=np.ones(40))
    assert soft[0, :20] == pytest.approx(1.0)
    assert soft[0, 30, 40] < 1e-3
    # An edge blurred by a Gaussian, here of 18 mm / 3, is its integral: half at the edge, an error function beside it.
    for off, share in ((0.5, 0.5), (3.5, 0.5 * (1 + math.erf(3 * FWHM / 6 / math.sqrt(2))))):
        at = 51 - 0.5 + off - 0.5
        assert np.interp(at, np.arange(81), soft[0, 30]) == pytest.approx(share, abs=0.03)


def test_a_point_is_as_wide_as_the_beam_at_its_depth() -> None:
    # Three points; their width across the beams is the transducer's formula at their depth.
    points = np.zeros((1, 240, 201), complex)
    depths = [15, 105, 225]  # the middles of zones
    points[0, depths, 100] = 1
    spread = np.abs(point_spread(points, transducer=PROBE, step_mm=0.5, beam_mm=np.full(240, 0.1)))[0]
    at = (np.arange(201) - 100) * 0.1
    widths = [FWHM * math.sqrt((row * at**2).sum() / row.sum()) for row in spread[depths]]
    expected = [PROBE.lateral_fwhm_mm(0.5 * depth, shown_mm=120.0) for depth in depths]
    assert widths == pytest.approx(expected, rel=0.06)
    assert widths[2] > 1.5 * widths[1]


def test_the_beam_is_the_product_of_what_is_sent_and_received() -> None:
    # By hand, in wavelengths of 0.385 mm: F = 4, focus 60 mm, r_F = 3.5 x 16 = 56 wavelengths = 21.56 mm.
    # At the focus both are sqrt(2) 4 wide, the product 4.
    assert PROBE.lateral_fwhm_mm(60.0, shown_mm=120.0) == pytest.approx(0.385 * 4)
    # At r_F below it what is sent is sqrt(2) times wider, 8, and what is received sqrt(2) 81.56 / 15 = 7.690.
    assert PROBE.lateral_fwhm_mm(81.56, shown_mm=120.0) == pytest.approx(0.385 / math.hypot(1 / 8, 1 / 7.690), rel=1e-3)
    # At r_F above it 8 again, and sqrt(2) 3 = 4.243: no aperture receives from nearer than three times its width.
    assert PROBE.lateral_fwhm_mm(38.44, shown_mm=120.0) == pytest.approx(0.385 / math.hypot(1 / 8, 1 / 4.243), rel=1e-3)


def test_time_gain_that_matches_the_tissue_leaves_it_even() -> None:
    depth_cm = np.arange(200) * 0.05
    echoes = np.broadcast_to(10 ** (-4 * depth_cm / 20), (1, 200))[..., None].astype(complex)
    even = Receiver(1.0, (0.0, 0.0), (0.0,), -200.0, -200.0, 10.0, 60.0, 1.0)
    quiet = np.zeros(echoes.shape)
    grey = compress(echoes, receiver=even, clutter=quiet, frequency_mhz=4.0, step_mm=0.5)
    assert np.ptp(grey) < 1e-6
    low = dataclasses.replace(even, tgc_db_cm_mhz=0.7)
    grey = compress(echoes, receiver=low, clutter=quiet, frequency_mhz=4.0, step_mm=0.5)
    # 0.3 dB/cm/MHz too little, 4 MHz, 9.95 cm: 11.9 dB of the 60 shown.
    assert grey[0, 0, 0] - grey[0, -1, 0] == pytest.approx(0.3 * 4 * 9.95 / 60, rel=1e-3)


# Geometry


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_scan_conversion_puts_a_reflector_at_its_millimetre(machine: Any) -> None:
    field = machine.field(120.0, image_size=96)
    depths, beams = field.samples
    samples = np.zeros((1, depths, beams))
    depth, beam = depths // 2, beams // 3
    samples[0, depth - 1 : depth + 2, beam - 1 : beam + 2] = 1
    image = field.scan_convert(samples)[0]
    row, column = (float((image * at).sum() / image.sum()) for at in np.indices(image.shape))
    # By hand: x = (R + r) sin t, z = (R + r) cos t - R; the picture's middle column is x = 0.
    across = field.spread * (2 * beam / (beams - 1) - 1)
    r = depth * field.depth_mm / depths
    x = (field.radius_mm + r) * math.sin(across) if field.radius_mm else across
    z = (field.radius_mm + r) * math.cos(across) - field.radius_mm if field.radius_mm else r
    assert (column + 0.5 - 48) * field.pixel_mm == pytest.approx(x, abs=0.5 * field.pixel_mm)
    rise = field.radius_mm * (1 - math.cos(field.spread)) if field.radius_mm else 0.0
    top = -rise - (96 * field.pixel_mm - field.depth_mm - rise) / 2
    assert (row + 0.5) * field.pixel_mm + top == pytest.approx(z, abs=0.5 * field.pixel_mm)


def test_the_picture_is_black_outside_the_field_of_view() -> None:
    field = Field(depth_mm=120.0, radius_mm=50.0, spread=0.6, crop=0.0, image_size=64)
    image = field.scan_convert(np.ones((1, *field.samples)))[0]
    assert image[0, 0] == image[-1, 0] == image[-1, -1] == 0
    assert image[40, 32] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        (Ellipse((3.0, -2.0), (20.0, 12.0), (1.0, 0.7)), math.pi * 20 * 12),
        (Rod([(-10.0, 0.0), (10.0, 5.0)], 3.0), 2 * 3 * math.hypot(20, 5) + math.pi * 9),
        (Polygon([(-10.0, -10.0), (10.0, -10.0), (0.0, 15.0)]), 0.5 * 20 * 25),
        # Half an ellipse of 18 x 10, and of one of 14.4 x 10 the part up to the base, 6 from the middle.
        (
            Bullet((-6.0, 5.0), (13.2, -9.4), 10.0),
            math.pi * 18 * 10 / 2 + 14.4 * 10 * (math.asin(6 / 14.4) + 6 / 14.4 * math.sqrt(1 - (6 / 14.4) ** 2)),
        ),
    ],
    ids=["ellipse", "rod", "polygon", "bullet"],
)
def test_the_inside_of_an_outline_has_its_area(shape: Any, area: float) -> None:
    at = np.arange(-30, 30, 0.1)
    u, v = np.meshgrid(at, at)
    distance = shape.distance(u, v)
    assert (distance < 0).sum() * 0.01 == pytest.approx(area, rel=0.01)
    slope = np.hypot(*np.gradient(distance, 0.1))
    assert np.median(slope[np.abs(distance) < 1]) == pytest.approx(1.0, abs=0.03)
    (cu, cv), radius = shape.bounds
    assert (np.hypot(u - cu, v - cv)[distance < 0] <= radius + 1e-6).all()


def test_growth_at_twenty_weeks_is_that_of_the_chart() -> None:
    # Hadlock 1984 at 20 weeks: HC 177, AC 149, FL 33 mm. Averaged over fetuses of 19.5 to 20.5 weeks.
    fetuses = [draw_biometry(np.random.default_rng(seed)) for seed in range(3000)]
    fetuses = [fetus for fetus in fetuses if abs(fetus.weeks - 20) < 0.5]
    assert np.mean([fetus.head_circumference for fetus in fetuses]) == pytest.approx(177, abs=3)
    assert np.mean([fetus.abdominal_circumference for fetus in fetuses]) == pytest.approx(149, abs=3)
    assert np.mean([fetus.femur_length for fetus in fetuses]) == pytest.approx(33, abs=1)
    a, b = fetuses[0].head_semi_axes
    angle = np.linspace(0, 2 * np.pi, 10001)
    around = np.hypot(np.diff(a * np.cos(angle)), np.diff(b * np.sin(angle))).sum()
    assert around == pytest.approx(fetuses[0].head_circumference, rel=1e-4)
    assert ellipse_circumference(1.0, 1.0) == pytest.approx(2 * math.pi)


# Frames


def test_head_masks_measure_the_patients_head(frames: list[tuple[Scan, Frame]]) -> None:
    whole = 0
    for scan, frame in frames:
        if frame.plane != "HCP" or _cut_off(frame):
            continue
        whole += 1
        a, b = scan.size.head_semi_axes
        assert (frame.mask == MASKS.index("head")).sum() * frame.pixel_mm**2 == pytest.approx(math.pi * a * b, rel=0.01)
        (contour,), _ = cv2.findContours(frame.mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        axes = np.array(cv2.fitEllipse(contour)[1]) / 2 + 0.5  # contours run through the centres of pixels
        measured = ellipse_circumference(*(axes * frame.pixel_mm).tolist())
        assert measured == pytest.approx(scan.size.head_circumference, rel=0.03)
    assert whole >= 5


def test_the_femur_mask_is_as_long_as_the_femur(frames: list[tuple[Scan, Frame]]) -> None:
    whole = [(scan, frame) for scan, frame in frames if frame.plane == "FLP" and not _cut_off(frame)]
    assert len(whole) >= 5
    for scan, frame in whole:
        at = np.argwhere(frame.mask == MASKS.index("femur")) * frame.pixel_mm
        length = max(np.hypot(*(at - point).T).max() for point in at)
        assert length == pytest.approx(scan.size.femur_length, abs=2 * frame.pixel_mm)


def _cut_off(frame: Frame) -> bool:
    """Whether the mask touches the border of the field of view."""
    inner = cv2.erode(np.pad(frame.field.visible().astype(np.uint8), 1), np.ones((3, 3)))[1:-1, 1:-1]
    return bool((frame.mask[inner == 0] != 0).any()) or not frame.mask.any()


def test_only_planes_that_are_measured_have_masks(frames: list[tuple[Scan, Frame]]) -> None:
    shown = {"HCP": "head", "SOB": "head", "ACP": "abdomen", "FLP": "femur"}
    for _, frame in frames:
        values = set(np.unique(frame.mask).tolist()) - {0}
        assert values == ({MASKS.index(shown[frame.plane])} if frame.plane in shown else set())


def test_every_plane_of_the_taxonomy_is_drawn_and_occurs(frames: list[tuple[Scan, Frame]]) -> None:
    assert set(PLANES) == set(FETAL_PLANES_14.fine)
    assert {frame.plane for _, frame in frames} == {None, *FETAL_PLANES_14.fine}
    share = np.mean([frame.plane is None for _, frame in frames])
    assert 0.25 < share < 0.5
    assert all(frame.image.max() > 100 and (frame.image == 0).mean() > 0.02 for _, frame in frames)


def test_no_scan_shows_every_plane(frames: list[tuple[Scan, Frame]]) -> None:
    for scan in {scan for scan, _ in frames}:
        assert len({visit.plane for visit in scan.visits}) < len(FETAL_PLANES_14.fine)


def test_painting_in_windows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = [Scan(seed=1, patient=patient, number=0, frame_count=12, image_size=48) for patient in range(6)]
    scans.append(Scan(seed=1, patient=0, number=0, frame_count=4, image_size=48, domain=HEART))
    windowed = [frame.image for scan in scans for frame in scan.frames()]
    everywhere = slice(0, 10**6), slice(0, 10**6)
    monkeypatch.setattr(planes, "window", lambda *_, **__: everywhere)
    whole = [frame.image for scan in scans for frame in scan.frames()]
    np.testing.assert_array_equal(windowed, whole)


# The heart


@pytest.fixture(scope="module")
def hearts() -> list[tuple[Scan, Frame]]:
    """Frames of twelve scans of a heart each."""
    scans = [Scan(seed=0, patient=n, number=0, frame_count=5, image_size=96, domain=HEART) for n in range(12)]
    return [(scan, frame) for scan in scans for frame in scan.frames()]


def area(shape: Bullet) -> float:
    """Half an ellipse, and of the other one the part up to the base."""
    s = 0.25 / 0.6
    return shape.length * shape.half_width * (0.375 * math.pi + 0.6 * (math.asin(s) + s * math.sqrt(1 - s * s)))


def test_heart_masks_have_the_area_of_the_heart(hearts: list[tuple[Scan, Frame]]) -> None:
    whole = 0
    for scan, frame in hearts:
        (visit,) = (visit for visit in scan.visits if frame.number in visit.frames)
        now: heart.Heart = scan.size_at(visit)
        if _cut_off(frame):
            continue
        whole += 1
        shown = {name: (frame.mask == value).sum() * frame.pixel_mm**2 for value, name in enumerate(heart.MASKS)}
        assert shown["left ventricle"] == pytest.approx(area(now.left_ventricle), rel=0.02)
        # The ventricle's base leans, and takes a sliver of the atrium.
        assert shown["left atrium"] == pytest.approx(area(now.left_atrium), rel=0.06)
        wall = area(now.myocardium) - area(now.left_ventricle)
        assert shown["myocardium"] == pytest.approx(wall, rel=0.05)
    assert whole >= 10


def test_a_heart_contracts_as_hearts_do() -> None:
    # Volume of bodies of one shape goes with length x width^2; ejection fractions of 52 to 74 % are normal (Lang et al.
    # 2015).
    for seed in range(50):
        diastole = heart.draw_heart(np.random.default_rng(seed))
        systole = diastole.at(1.0)
        volume = [h.ventricle_length * h.ventricle_width**2 for h in (diastole, systole)]
        assert 0.52 < 1 - volume[1] / volume[0] < 0.74
        assert area(systole.left_atrium) > area(diastole.left_atrium)
        # The muscle keeps about its volume, and so, cut along, not much less than its area.
        muscle = [area(h.myocardium) - area(h.left_ventricle) for h in (diastole, systole)]
        assert 0.8 < muscle[1] / muscle[0] < 1.2
        assert diastole.at(0.0) == diastole


def test_every_frame_of_a_heart_has_its_structures(hearts: list[tuple[Scan, Frame]]) -> None:
    assert {frame.plane for _, frame in hearts} == {"4CH"}
    for _, frame in hearts:
        assert set(np.unique(frame.mask).tolist()) == {0, 1, 2, 3}
        blood, muscle = (frame.image[frame.mask == value].mean() for value in (1, 2))
        assert muscle > blood


def test_the_two_domains_share_no_machine() -> None:
    assert not {machine.name for machine in FETUS.machines} & {machine.name for machine in HEART.machines}


def test_the_set_of_hearts(tmp_path: Path) -> None:
    builder = Phantom(config="heart_tiny", data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    rows = {name: split(builder, name) for name in ("train", "val", "test")}
    assert {name: len(these) for name, these in rows.items()} == {"train": 24, "val": 12, "test": 20}
    assert builder.info.features["mask"].names == list(heart.MASKS)
    names = builder.info.features["anatomy_fine"].names
    assert {names[row["anatomy_fine"]] for these in rows.values() for row in these} == {"4CH"}
    whole: Any = Phantom.builder_configs["heart"]
    assert sum(scan.frame_count for name, _ in whole.patients for scan in whole.scans(name)) == 324


# Draws


def test_addresses_of_different_draws_differ() -> None:
    # numpy gives [1, 2] and [1, 2, 0] one stream: patient 2 must not share it with its scan 0.
    places = [(1, 2, scan, frame, purpose) for scan in (-1, 0, 1) for frame in (-1, 0, 1) for purpose in range(7)]
    draws = [address(*place[:4], purpose=place[4]).integers(2**62) for place in places]
    assert len(set(draws)) == len(places)


# The set


def test_patients_are_in_one_split_and_ids_unique(tiny: Phantom) -> None:
    rows = {name: split(tiny, name) for name in ("train", "val", "test")}
    patients = {name: {row["patient_id"] for row in these} for name, these in rows.items()}
    assert {name: len(these) for name, these in patients.items()} == {"train": 12, "val": 4, "test": 6}
    assert len(set.union(*patients.values())) == 22
    ids = [row["frame_id"] for these in rows.values() for row in these]
    assert len(set(ids)) == len(ids) == 22 * 16
    for row in rows["train"]:
        assert row["frame_id"].startswith(row["scan_id"])
        assert row["scan_id"].startswith(row["patient_id"])


def test_coarse_follows_fine(tiny: Phantom) -> None:
    fine, coarse = FETAL_PLANES_14.fine, FETAL_PLANES_14.coarse
    labels = {(int(row["anatomy_fine"]), int(row["anatomy_coarse"])) for row in split(tiny, "train")}
    assert (UNLABELLED, UNLABELLED) in labels
    for f, c in labels - {(UNLABELLED, UNLABELLED)}:
        assert coarse[c] == FETAL_PLANES_14.coarse_of(fine[f])


@pytest.mark.slow
def test_making_the_set_twice_gives_the_same_records(tiny: Phantom, tmp_path: Path) -> None:
    # Of another process perhaps, and so not the same files: each writes a record's fields in an order of its own.
    again = tiny_in(tmp_path)
    again.download_and_prepare()
    for name in ("train", "val", "test"):
        for row, other in zip(split(again, name), split(tiny, name), strict=True):
            assert row.keys() == other.keys()
            for field, value in row.items():
                np.testing.assert_array_equal(value, other[field])


@pytest.mark.slow
def test_making_the_set_twice_in_one_process_gives_the_same_bytes(tmp_path: Path) -> None:
    def digests(folder: Path) -> dict[str, str]:
        builder = tiny_in(folder)
        builder.download_and_prepare()
        files = sorted(Path(builder.data_dir).glob("*.array_record*"))
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    first = digests(tmp_path / "first")
    assert len(first) == 3
    assert digests(tmp_path / "second") == first


def test_a_scan_made_alone_equals_the_scan_in_the_set(tiny: Phantom) -> None:
    rows = [row for row in split(tiny, "val") if row["patient_id"] == b"P0013"]
    alone = list(records(Scan(seed=0, patient=13, number=0, frame_count=16, image_size=48)))
    assert len(rows) == len(alone) == 16
    for row, record in zip(rows, alone, strict=True):
        assert row["frame_id"].decode() == record["frame_id"]
        picture = cv2.imdecode(np.frombuffer(record["image"].getvalue(), np.uint8), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(row["image"][..., 0], picture)


def test_pixels_are_the_same_on_every_machine() -> None:
    # Taken with and without the vector instructions of one processor (NPY_DISABLE_CPU_FEATURES), under Python 3.11 and
    # 3.13. A change of the phantom changes it: raise the version of the dataset with it.
    digest = hashlib.sha256()
    for frame in Scan(0, 0, 0, 18, 96).frames():
        digest.update(frame.image.tobytes() + frame.mask.tobytes())
    assert digest.hexdigest()[:16] == "ca8b97228a6746f5"


def test_pixels_of_a_heart_are_the_same_on_every_machine() -> None:
    # Taken as above.
    digest = hashlib.sha256()
    for frame in Scan(0, 0, 0, 9, 96, HEART).frames():
        digest.update(frame.image.tobytes() + frame.mask.tobytes())
    assert digest.hexdigest()[:16] == "3f2558083f4196c3"
