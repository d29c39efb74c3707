"""From a patient to the frames of a scan.

A patient is a fetus of some age, or an adult's heart. A scan puts it before a machine and under a body wall, and visits
some planes in some order; the frames of a visit drift smoothly and may start off the plane, where they carry no label.

    patient -> settings of the scan -> visits of planes -> medium -> echoes -> picture and mask
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from awcl_jax.ingest.phantom import examination
from awcl_jax.ingest.phantom.acoustics import Receiver, compress, penumbra, point_spread, transmission
from awcl_jax.ingest.phantom.display import Field, draw_overlay
from awcl_jax.ingest.phantom.domains import FETUS, Domain
from awcl_jax.ingest.phantom.examination import Pose, Settings, Visit, address, drift
from awcl_jax.ingest.phantom.outlines import Medium, Outline
from awcl_jax.ingest.phantom.planes import Plane, View
from awcl_jax.ingest.phantom.unevenness import COURSE, ORGANS, Surface, factor


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame of a scan.

    Attributes:
      number: within the scan.
      image: the machine's picture.
      mask: values of the domain's masks: the ideal outline of what is measured, where the field of view shows it.
      plane: fine anatomy, None between planes.
      field: the field of view.
    """

    number: int
    image: UInt8[np.ndarray, "h w"]
    mask: UInt8[np.ndarray, "h w"]
    plane: str | None
    field: Field

    @property
    def pixel_mm(self) -> float:
        return self.field.pixel_mm


@dataclasses.dataclass(frozen=True)
class Scan:
    """One examination of one patient; all it shows follows from these numbers.

    Attributes:
      seed: of the set.
      patient: number of the patient.
      number: of the scan among the patient's.
      frame_count: frames in it.
      image_size: edge of the picture in pixels.
      domain: what is scanned.
    """

    seed: int
    patient: int
    number: int
    frame_count: int
    image_size: int
    domain: Domain = FETUS

    @property
    def size(self) -> Any:
        """Sizes of the patient: a `Biometry`, or a `heart.Heart` at end diastole."""
        return self.domain.draw_sizes(address(self.seed, self.patient, purpose=examination.PATIENT))

    @property
    def settings(self) -> Settings:
        rng = address(self.seed, self.patient, self.number, purpose=examination.SETTINGS)
        return examination.draw_settings(rng, machines=self.domain.machines)

    @property
    def visits(self) -> list[Visit]:
        rng = address(self.seed, self.patient, self.number, purpose=examination.VISITS)
        planes, most_away = tuple(self.domain.planes), self.domain.most_away
        return examination.draw_visits(rng, frames=self.frame_count, planes=planes, most_away=most_away)

    def size_at(self, visit: Visit) -> Any:
        """Return the sizes at the moment of a visit."""
        rng = address(self.seed, self.patient, self.number, visit.frames[0], purpose=examination.MOMENT)
        return self.domain.sizes_at(self.size, rng)

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in order."""
        settings = self.settings
        for visit in self.visits:
            yield from self._visit(visit, size=self.size_at(visit), settings=settings)

    def _visit(self, visit: Visit, *, size: Any, settings: Settings) -> Iterator[Frame]:
        rng = address(self.seed, self.patient, self.number, visit.frames[0], purpose=examination.DRAWING)
        plane = self.domain.planes[visit.plane]
        reach_mm = plane.reach(size)
        below_mm = 2 * reach_mm / settings.fill * float(rng.uniform(0.9, 1.15))
        field = settings.machine.field(np.clip(settings.wall_mm + below_mm, 50, 200), image_size=self.image_size)
        pose = _draw_pose(rng, visit, settings, reach_mm=reach_mm, plane=plane, field=field)
        medium = self.domain.surround(rng, settings, pose, field=field, reach_mm=reach_mm)
        outlines = [(self.domain.masks.index(name), shape) for name, shape in self.domain.measured(visit.plane, size)]
        within = self.domain.bends_within
        u, v = _warped(rng, [shape for _, shape in outlines], pose, field=field, reach_mm=reach_mm, within=within)
        presence = np.array(visit.presence, np.float32)[:, None, None]
        texture, course = (Surface.draw(rng, parts, edge_mm=3.2 * reach_mm) for parts in (ORGANS, COURSE))
        within_plane = dataclasses.replace(medium, texture=factor(texture).at(u, v))
        plane.draw(View(within_plane, u, v, presence, field.coarse_mm, course.at(u, v)), size, rng)
        images = self._image(medium, visit, rng, settings=settings, field=field)
        masks = _masks(visit, outlines, pose, field=field)
        for number, share, image, mask in zip(visit.frames, visit.presence, images, masks, strict=True):
            yield Frame(number, image, mask, visit.plane if share == 1 else None, field)

    def _image(
        self, medium: Medium, visit: Visit, rng: np.random.Generator, *, settings: Settings, field: Field
    ) -> list[UInt8[np.ndarray, "h w"]]:
        """Insonate the medium and show what comes back on the machine's screen."""
        machine, step_mm = settings.machine, field.step_mm
        sources = [address(self.seed, self.patient, self.number, n, purpose=examination.SPECKLE) for n in visit.frames]
        speckle = np.stack([source.standard_normal((2, *field.samples)) for source in sources]) * np.sqrt(0.5)
        clutter = np.stack([source.standard_exponential(field.samples) for source in sources])
        back = transmission(medium.attenuation, frequency_mhz=machine.transducer.frequency_mhz, step_mm=step_mm)
        back = penumbra(back, aperture_mm=machine.transducer.aperture_mm(field.depth_mm), beam_mm=field.beam_mm)
        back *= _contact(settings, beams=field.samples[1])
        scattered = np.empty(back.shape, complex)
        scattered.real = (medium.amplitude * speckle[:, 0] + medium.mirror) * back
        scattered.imag = medium.amplitude * speckle[:, 1] * back
        echoes = point_spread(scattered, transducer=machine.transducer, step_mm=step_mm, beam_mm=field.beam_mm)
        grey = compress(
            echoes,
            receiver=_receiver(settings, field, gain_db=settings.gain_db + 1.5 * drift(rng, frames=len(visit.frames))),
            clutter=clutter,
            frequency_mhz=machine.transducer.frequency_mhz,
            step_mm=step_mm,
        )
        images = [np.ascontiguousarray(image) for image in np.rint(255 * field.scan_convert(grey)).astype(np.uint8)]
        for image in images:
            draw_overlay(image, text=machine.text, corner=machine.corner, ticks=machine.ticks, pixel_mm=field.pixel_mm)
        return images


def _draw_pose(
    rng: np.random.Generator, visit: Visit, settings: Settings, *, reach_mm: float, plane: Plane, field: Field
) -> Pose:
    """Keep the fetus as in the rest of the scan, turn the transducer to the plane, and let both drift."""
    n = len(visit.frames)
    presence = np.array(visit.presence)
    middle = settings.wall_mm + 0.5 * (field.depth_mm - settings.wall_mm)
    room = max(0.0, 0.5 * (field.depth_mm - settings.wall_mm) - reach_mm)
    x = plane.stray * reach_mm * (settings.shift + float(rng.uniform(-0.15, 0.15)) + 0.06 * drift(rng, frames=n))
    z = middle + room * float(rng.uniform(-0.6, 0.6)) + 0.05 * reach_mm * drift(rng, frames=n)
    turn = plane.tilt * np.clip(settings.lie + float(rng.uniform(-0.4, 0.4)), -1, 1) + 0.1 * drift(rng, frames=n)
    off = (1 - presence) * rng.uniform(-1, 1, (2, 1))
    return Pose(
        x=(x + 0.5 * reach_mm * off[0])[:, None, None],
        z=z[:, None, None],
        turn=(turn + 0.8 * off[1])[:, None, None],
        scale=(1 - 0.3 * (1 - presence))[:, None, None],
        mirrored=settings.mirrored,
    )


def _contact(settings: Settings, *, beams: int) -> Float[np.ndarray, " beam"]:
    """Return the amplitude of each beam when it enters the body."""
    at = np.linspace(0, 1, beams)
    loss_db = np.zeros(beams)
    for centre, width, depth_db in settings.contact:
        loss_db += depth_db * np.clip(1 - ((at - centre) / width) ** 2, 0, 1)
    return 10 ** (-loss_db / 20)


def _warped(
    rng: np.random.Generator, outlines: list[Outline], pose: Pose, *, field: Field, reach_mm: float, within: bool
) -> tuple[Float[np.ndarray, "f depth beam"], Float[np.ndarray, "f depth beam"]]:
    """Return the plane's coordinates (u, v) at every sample, bent a little because no two fetuses are alike.

    The bend fades out towards the outlines that are measured, from within or from about them, and is none on their
    other side, so that the mask stays exact.
    """
    u, v = (at.astype(np.float32) for at in pose.to_plane(*field.beam_positions()))
    free: Any = 1.0
    if outlines:
        distance = functools.reduce(np.minimum, [shape.distance(u, v) for shape in outlines])
        free = np.clip(distance * ((-5 if within else 5) / reach_mm), 0, 1)
    bend_u, bend_v = (
        (0.06 * reach_mm * _uneven(rng, field, cell_mm=0.6 * reach_mm)).astype(np.float32) for _ in range(2)
    )
    return u + free * bend_u, v + free * bend_v


def _uneven(rng: np.random.Generator, field: Field, *, cell_mm: float) -> Float[np.ndarray, "depth beam"]:
    """Draw a random surface over depth and beams: bilinear between standard normal knots, a cell apart."""
    counts = tuple(max(3, round(extent / cell_mm)) for extent in (field.depth_mm, field.side_mm))
    surface = _refine(rng.standard_normal(counts), field.samples[0])
    return _refine(surface.T, field.samples[1]).T


def _refine(knots: Float[np.ndarray, "knots n"], samples: int) -> Float[np.ndarray, "samples n"]:
    """Interpolate linearly between evenly spaced knots."""
    at = np.linspace(0, len(knots) - 1, samples)
    low = np.minimum(at.astype(int), len(knots) - 2)
    share = (at - low)[:, None]
    return knots[low] * (1 - share) + knots[low + 1] * share


def _receiver(settings: Settings, field: Field, *, gain_db: Float[np.ndarray, " f"]) -> Receiver:
    amplified_db = settings.tgc_db_cm_mhz * settings.machine.transducer.frequency_mhz * field.depth_mm / 10
    return Receiver(
        tgc_db_cm_mhz=settings.tgc_db_cm_mhz,
        tgc_sliders_db=settings.tgc_sliders_db,
        gain_db=tuple(gain_db.tolist()),
        noise_db=settings.noise_db - amplified_db,
        haze_db=settings.haze_db,
        haze_mm=settings.wall_mm,
        range_db=settings.machine.range_db,
        gamma=settings.machine.gamma,
    )


def _masks(
    visit: Visit, outlines: list[tuple[int, Outline]], pose: Pose, *, field: Field
) -> UInt8[np.ndarray, "f h w"]:
    """Return what is measured on the frames on the plane; all else, and every frame between planes, is background."""
    masks = np.zeros((len(visit.frames), field.image_size, field.image_size), np.uint8)
    if not outlines:
        return masks
    u, v = pose.to_plane(*field.pixel_positions())
    seen = field.visible() & (np.array(visit.presence) == 1)[:, None, None]
    for value, shape in outlines:
        masks[(shape.distance(u, v) < 0) & seen] = value
    return masks
