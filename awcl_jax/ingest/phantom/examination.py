"""What is drawn by lot about an examination: machine, body wall, sonographer, and the path over the planes.

Every draw is made from its address (seed, patient, scan, frame), so that a scan made alone equals the scan in the set.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from awcl_jax.ingest.phantom.acoustics import Transducer
from awcl_jax.ingest.phantom.display import Field

PATIENT, SCANS, SETTINGS, VISITS, SPECKLE, DRAWING, MOMENT = range(7)


def address(seed: int, patient: int, scan: int = -1, frame: int = -1, *, purpose: int) -> np.random.Generator:
    """Return the generator of one draw. All addresses have one length: for numpy, [1, 2] and [1, 2, 0] are one seed."""
    return np.random.default_rng([seed, patient, scan + 1, frame + 1, purpose])


@dataclasses.dataclass(frozen=True)
class Machine:
    """An ultrasound machine with its transducer and its screen.

    Attributes:
      name: as in the record.
      transducer: what sends and receives.
      radius_mm: of the curved array, 0 for a linear one.
      spread: half the opening angle in radians; for a linear array half the width over the depth.
      crop: see `Field`.
      range_db: dynamic range.
      gamma: exponent of the grey map.
      text: burnt into the picture.
      corner: top left of the text, as shares of height and width.
      ticks: see `draw_overlay`.
    """

    name: str
    transducer: Transducer
    radius_mm: float
    spread: float
    crop: float
    range_db: float
    gamma: float
    text: str
    corner: tuple[float, float]
    ticks: str

    def field(self, depth_mm: float, *, image_size: int) -> Field:
        """Return the field of view at a depth setting; machines have one every centimetre."""
        depth_mm = 10.0 * round(depth_mm / 10)
        spread = self.spread if self.radius_mm else self.spread * depth_mm
        return Field(depth_mm, self.radius_mm, spread, self.crop, image_size)


MACHINES = (
    Machine("Curved 3.5", Transducer(3.5, 5.0, 6.0, 0.55), 60.0, 0.60, 0.3, 62.0, 1.2, "C3.5", (0.03, 0.78), "right"),
    Machine("Curved 5", Transducer(5.0, 4.0, 7.0, 0.5), 50.0, 0.66, 0.9, 54.0, 1.35, "OB 5", (0.03, 0.05), "left"),
    Machine("Volume 4-8", Transducer(4.5, 4.0, 5.0, 0.6), 40.0, 0.72, 0.6, 70.0, 1.1, "4D", (0.92, 0.88), "bar"),
    Machine("Portable 3", Transducer(3.0, 6.0, 6.5, 0.45), 60.0, 0.48, 0.5, 46.0, 1.5, "P3 20", (0.92, 0.03), ""),
    Machine("Linear 7", Transducer(6.0, 4.0, 7.5, 0.45), 0.0, 0.42, 0.0, 58.0, 1.2, "L7", (0.03, 0.45), "left"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the frames of a scan have in common.

    Attributes:
      machine: that made it.
      wall_mm: thickness of the maternal wall.
      wall_attenuation: of that wall, dB/cm/MHz.
      haze_db: clutter at the skin.
      gain_db: overall gain.
      tgc_db_cm_mhz: attenuation that the time gain makes up for.
      tgc_sliders_db: as the sonographer left them.
      noise_db: electronic noise at the bottom of the picture, after time gain.
      fill: share of the depth below the wall that a plane's reach is given.
      placenta: +1 anterior, -1 posterior.
      placenta_mm: its thickness.
      lie: turn of the fetus, as a share of what each plane allows.
      mirrored: whether left and right are swapped.
      shift: of the fetus to the side, as a share of its reach.
      contact: where the transducer lifts off or a rib shades: place and width as shares of all beams, loss in dB.
    """

    machine: Machine
    wall_mm: float
    wall_attenuation: float
    haze_db: float
    gain_db: float
    tgc_db_cm_mhz: float
    tgc_sliders_db: tuple[float, ...]
    noise_db: float
    fill: float
    placenta: int
    placenta_mm: float
    lie: float
    mirrored: bool
    shift: float
    contact: tuple[tuple[float, float, float], ...]


def draw_settings(rng: np.random.Generator, *, machines: Sequence[Machine]) -> Settings:
    """Draw machine, body wall and sonographer of a scan."""

    def uniform(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    machine = machines[int(rng.integers(len(machines)))]
    return Settings(
        machine=machine,
        wall_mm=uniform(8.0, 22.0),
        wall_attenuation=uniform(0.4, 0.85),
        haze_db=uniform(-38.0, -18.0),
        gain_db=uniform(-11.0, 1.0),
        tgc_db_cm_mhz=uniform(0.8, 1.1),
        tgc_sliders_db=tuple(rng.uniform(-4, 4, 6).tolist()),
        noise_db=uniform(-54.0, -36.0),
        fill=uniform(0.6, 1.0),
        placenta=1 if rng.random() < 0.5 else -1,
        placenta_mm=uniform(8.0, 22.0),
        lie=uniform(-1.0, 1.0),
        mirrored=bool(rng.random() < 0.5),
        shift=uniform(-0.3, 0.3),
        contact=tuple(
            (uniform(0.0, 1.0), uniform(0.03, 0.12), uniform(3.0, 16.0)) for _ in range(int(rng.integers(3)))
        ),
    )


@dataclasses.dataclass(frozen=True)
class Visit:
    """A stretch of frames about one plane.

    Attributes:
      plane: fine anatomy.
      frames: numbers of its frames within the scan.
      presence: 1 in labelled frames, below on the way to the plane.
    """

    plane: str
    frames: tuple[int, ...]
    presence: tuple[float, ...]


def draw_visits(rng: np.random.Generator, *, frames: int, planes: Sequence[str], most_away: int = 2) -> list[Visit]:
    """Draw the planes of a scan in random order: up to `most_away` frames on the way to each, one to three on it."""
    visits: list[Visit] = []
    order: list[str] = []
    start = 0
    while start < frames:
        order = order or [str(name) for name in rng.permutation(planes)]
        away, on = int(rng.integers(most_away + 1)), 1 + int(rng.integers(3))
        rising = np.sort(rng.uniform(0.1, 0.6, away)).tolist()
        presence = tuple([*rising, *[1.0] * on][: frames - start])
        visits.append(Visit(order.pop(), tuple(range(start, start + len(presence))), presence))
        start += len(presence)
    return visits


@dataclasses.dataclass(frozen=True)
class Pose:
    """Position of a plane in each frame: arrays [f, 1, 1], millimetres and radians.

    Attributes:
      x: across, of the plane's centre.
      z: below the transducer.
      turn: of the plane's u axis.
      scale: size of the cut; 1 on the plane, smaller where the slice leaves it.
      mirrored: whether v runs the other way.
    """

    x: Float[np.ndarray, "f 1 1"]
    z: Float[np.ndarray, "f 1 1"]
    turn: Float[np.ndarray, "f 1 1"]
    scale: Float[np.ndarray, "f 1 1"]
    mirrored: bool

    def to_plane(
        self, x: Float[np.ndarray, "*shape"], z: Float[np.ndarray, "*shape"]
    ) -> tuple[Float[np.ndarray, "f h w"], Float[np.ndarray, "f h w"]]:
        """Return the plane's coordinates (u, v) of positions."""
        dx, dz = x - self.x, z - self.z
        c, s = np.cos(self.turn), np.sin(self.turn)
        u, v = (c * dx + s * dz) / self.scale, (c * dz - s * dx) / self.scale
        return (-u if self.mirrored else u), v


def drift(rng: np.random.Generator, *, frames: int) -> Float[np.ndarray, " f"]:
    """Draw a smooth walk about 0 with steps of about 0.3: two slow waves of random phase."""
    t = np.arange(frames)
    speed, phase = rng.uniform(0.15, 0.6, 2), rng.uniform(0, 2 * np.pi, 2)
    return (np.sin(speed[0] * t + phase[0]) + 0.5 * np.sin(speed[1] * t + phase[1])) / 1.5
