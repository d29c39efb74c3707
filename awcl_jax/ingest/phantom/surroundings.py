"""The surroundings of the plane, painted first, so that the plane covers them."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from awcl_jax.ingest.phantom.display import Field
from awcl_jax.ingest.phantom.examination import Pose, Settings
from awcl_jax.ingest.phantom.outlines import Ellipse, Medium, Rod, Tissue
from awcl_jax.ingest.phantom.planes import BONE, FLUID, MUSCLE, PLACENTA, SOFT
from awcl_jax.ingest.phantom.unevenness import LAYERS, WAVES, Surface, factor

FAT = Tissue(-6.0, 0.6, wall=0.8)
FASCIA = Tissue(5.0, 0.6, wall=2.0)
MYOMETRIUM = Tissue(-8.0, 0.6, wall=1.2)
LIMB = Tissue(-5.0, 0.5, wall=1.5)
MEDIASTINUM = Tissue(-12.0, 0.5)
LUNG = Tissue(4.0, 1.6, wall=5.0)


def womb(rng: np.random.Generator, settings: Settings, pose: Pose, *, field: Field, reach_mm: float) -> Medium:
    """Paint body wall, uterus, placenta, fluid and neighbouring parts of the fetus."""
    shape = (len(pose.x), *field.samples)
    medium, course = _filled(FLUID, shape, field, rng)
    x, z = field.beam_positions()
    shift = (0.4 * (pose.x - pose.x[:1])).astype(np.float32)
    x, z = x.astype(np.float32) + shift, np.broadcast_to(z, shape).astype(np.float32)
    depth = np.broadcast_to((np.arange(shape[1], dtype=np.float32) * np.float32(field.step_mm))[:, None], shape)
    wave = _wave(rng, x) + course
    wall, behind = settings.wall_mm, float(pose.z.mean()) + reach_mm * float(rng.uniform(1.0, 1.35))
    medium.paint(behind - 4 - depth + wave, FASCIA)
    medium.paint(behind - depth + wave, MYOMETRIUM)
    centre, thick = float(pose.z.mean()), settings.placenta_mm
    if settings.placenta > 0:
        medium.paint(depth - wall - thick + wave, PLACENTA)
    else:
        medium.paint(behind - thick - depth + 1.5 * wave, PLACENTA)
    for side in (-1, 1):
        _neighbour(rng, medium, x, z, course, side=side, centre=(float(pose.x.mean()), centre), reach_mm=reach_mm)
    _wall(medium, depth, wave, settings, MYOMETRIUM)
    return medium


def chest(rng: np.random.Generator, settings: Settings, pose: Pose, *, field: Field, reach_mm: float) -> Medium:
    """Paint the wall of an adult's chest, the lung on either side of the heart, and what is behind it."""
    shape = (len(pose.x), *field.samples)
    medium, course = _filled(MEDIASTINUM, shape, field, rng)
    x, z = (np.broadcast_to(at.astype(np.float32), shape) for at in field.beam_positions())
    depth = np.broadcast_to((np.arange(shape[1], dtype=np.float32) * np.float32(field.step_mm))[:, None], shape)
    centre = float(pose.x.mean()), float(pose.z.mean())
    for side in (-1, 1):
        off = reach_mm * float(rng.uniform(0.95, 1.2))
        lung = Ellipse((centre[0] + side * (off + 0.5 * reach_mm), centre[1]), (0.5 * reach_mm, 1.3 * reach_mm))
        medium.paint(lung.distance(x, z) + course, LUNG)
    spine = Rod([(centre[0] + reach_mm * float(rng.uniform(-0.9, -0.5)), centre[1] + 1.75 * reach_mm)], 14.0)
    medium.paint(spine.distance(x, z), BONE)
    _wall(medium, depth, _wave(rng, x) + course, settings, MUSCLE)
    return medium


def _filled(
    tissue: Tissue, shape: tuple[int, int, int], field: Field, rng: np.random.Generator
) -> tuple[Medium, Float[np.ndarray, "1 depth beam"]]:
    """Return a medium of one tissue, and by how many millimetres the boundaries painted into it stray."""
    x, z = (at.astype(np.float32) for at in field.beam_positions())
    texture, course = (Surface.draw(rng, parts, edge_mm=field.side_mm) for parts in (LAYERS, WAVES))
    medium = Medium(
        field.step_mm,
        amplitude=np.full(shape, tissue.amplitude, np.float32),
        attenuation=np.full(shape, tissue.attenuation, np.float32),
        mirror=np.zeros(shape, np.float32),
        texture=np.broadcast_to(factor(texture).at(x, z), shape),
    )
    return medium, course.at(x, z)[None]


def _wall(
    medium: Medium,
    depth: Float[np.ndarray, "f depth beam"],
    wave: Float[np.ndarray, "f depth beam"],
    settings: Settings,
    inner: Tissue,
) -> None:
    """Paint skin, fat and fascias of the body wall down to its inner layer, undulating."""
    wall = settings.wall_mm
    rows = slice(0, math.ceil((1.3 * wall + 8) / medium.step_mm))
    for level, tissue in ((1.0, inner), (0.72, FASCIA), (0.64, FAT), (0.22, FASCIA), (0.12, SOFT)):
        tissue = dataclasses.replace(tissue, attenuation=settings.wall_attenuation)
        medium.paint((depth - level * wall + 0.3 * wave)[:, rows], tissue, window=(rows, slice(None)))


def _neighbour(
    rng: np.random.Generator,
    medium: Medium,
    x: Float[np.ndarray, "f depth beam"],
    z: Float[np.ndarray, "f depth beam"],
    course: Float[np.ndarray, "1 depth beam"],
    *,
    side: int,
    centre: tuple[float, float],
    reach_mm: float,
) -> None:
    """Paint a limb, or the next part of the trunk, beside what is looked at."""
    radius = reach_mm * float(rng.uniform(0.25, 0.8))
    at = (
        centre[0] + side * reach_mm * float(rng.uniform(1.2, 1.9)),
        centre[1] + reach_mm * float(rng.uniform(-0.8, 0.8)),
    )
    slant = reach_mm * float(rng.uniform(-0.7, 0.7))
    end = (at[0] + side * reach_mm, at[1] + slant)
    medium.paint(Rod([at, end], radius).distance(x, z) + course, LIMB)
    if rng.random() < 0.5:
        medium.paint(Rod([at, end], 1.2).distance(x, z) + course, BONE)


def _wave(rng: np.random.Generator, x: Float[np.ndarray, "f depth beam"]) -> Float[np.ndarray, "f depth beam"]:
    """Draw an undulation of a few millimetres along x: a slope and a parabola, as layers bulge rather than ripple."""
    bulge, slope = float(rng.uniform(-0.0012, 0.0012)), float(rng.uniform(-0.08, 0.08))
    return slope * x + bulge * x * x
