"""Speckle of the phantom against that of a simulator of wave fields (PyMUST: SIMUS); see `docs/results/phantom.md`.

python -m benchmarks.speckle           # needs pymust; one core, a minute

Even tissue, without attenuation, before a convex array: random scatterers at three depths for the statistics, and one
scatterer at each of more depths for the width of the beam. The simulator's array sends its pulse from the middle of an
aperture that is focused at one depth, and is focused at every depth when it receives. A convex array looks the same
from each of its lines: instead of walking the aperture along it, we turn the scatterers the other way.

- SNR: mean of the envelope over its deviation; sqrt(pi / (4 - pi)) = 1.913 if it is Rayleigh distributed.
- KS: greatest distance of its distribution function from Rayleigh's of the same power.
- axial, lateral: full width at half maximum of the envelope's autocovariance, in millimetres.
- beam: full width at half maximum of one scatterer's envelope. The autocovariance of speckle of a Gaussian beam is as
  wide as the beam's own amplitude.
"""

import argparse
import dataclasses
import importlib
import math
from typing import Any

import numpy as np
from jaxtyping import Complex, Float

from awcl_jax.ingest.phantom.acoustics import Receiver, Transducer, compress, point_spread
from awcl_jax.ingest.phantom.display import Field

SHOWN_MM = 120.0
DEPTHS_MM = (25.0, 60.0, 105.0)
"""Shallow, at the focus, and deep."""
BEAM_DEPTHS_MM = (20.0, 30.0, 40.0, 50.0, 60.0, 75.0, 90.0, 105.0)
RADIUS_MM, PITCH_MM, MHZ, ELEMENTS = 49.57, 0.508, 3.57, 30
"""Of the array C5-2v; the aperture of 30 elements is 15.2 mm wide, a quarter of the focal depth of 60 mm."""
RECEIVE_F_NUMBER = 2.0
"""The least; the aperture grows with depth until all elements receive."""
CYCLES = 2.0
BAND_MM = 8.0
"""Depth of each band of tissue."""
LINES = 56
PROBE = Transducer(frequency_mhz=MHZ, cycles=CYCLES, f_number=60 / (ELEMENTS * PITCH_MM), focus=0.5)
"""The same array in the phantom's terms."""
RAYLEIGH = math.sqrt(math.pi / (4 - math.pi))

Envelope = Float[np.ndarray, "depth beam"]


@dataclasses.dataclass(frozen=True)
class Grain:
    """Speckle at one depth, as in the module's description."""

    snr: float
    ks: float
    axial_mm: float
    lateral_mm: float


def grain(envelope: Envelope, *, step_mm: float, beam_mm: float) -> Grain:
    """Measure the envelope of even tissue whose samples are `step_mm` by `beam_mm` apart."""
    level = envelope / np.sqrt((envelope**2).mean())
    return Grain(
        snr=float(level.mean() / level.std()),
        ks=rayleigh_distance(level),
        axial_mm=step_mm * correlation_width(level.T),
        lateral_mm=beam_mm * correlation_width(level),
    )


def rayleigh_distance(level: Float[np.ndarray, "..."]) -> float:
    """Return the greatest difference of the distribution function to 1 - exp(-x^2), Rayleigh's of mean power 1."""
    x = np.sort(level, axis=None)
    expected, n = -np.expm1(-(x**2)), x.size
    return float(max((np.arange(1, n + 1) / n - expected).max(), (expected - np.arange(n) / n).max()))


def correlation_width(level: Float[np.ndarray, "rows n"]) -> float:
    """Return the full width at half maximum, in samples, of the mean autocovariance along rows."""
    rows = level - level.mean()
    n = rows.shape[1]
    covariance = np.array([(rows[:, : n - lag] * rows[:, lag:]).mean() for lag in range(n - 1)])
    return 2 * first_half(covariance)


def first_half(falling: Float[np.ndarray, " n"]) -> float:
    """Return where a curve first falls to half its first value, between samples by a straight line."""
    share = falling / falling[0]
    below = int(np.argmax(share < 0.5))
    assert below, "never falls to half"
    return below - 1 + float((share[below - 1] - 0.5) / (share[below - 1] - share[below]))


def beam_width(envelope: Float[np.ndarray, " beam"], *, beam_mm: float) -> float:
    """Return the full width at half maximum of one scatterer's envelope, which starts at its middle."""
    return 2 * beam_mm * first_half(envelope)


# The simulator


class Referee:
    """A convex array in PyMUST, and the line of sight of its middle element."""

    def __init__(self) -> None:
        self._must: Any = importlib.import_module("pymust")
        param = self._must.getparam("C5-2v")
        param.Nelements, param.fs, param.fnumber, param.TXnow = ELEMENTS, 4 * param.fc, RECEIVE_F_NUMBER, CYCLES
        assert (param.fc, param.pitch, param.radius) == (MHZ * 1e6, PITCH_MM * 1e-3, RADIUS_MM * 1e-3)
        self._param = param
        self._chord = float(param.getElementPositions()[3].item())
        # Calls change the parameters that they are given: each one gets its own.
        self._delays = self._must.txdelay(0.0, self._metres(60.0), param.copy())

    def _metres(self, depth_mm: Any) -> Any:
        """Return z of a depth on the middle line: PyMUST counts from the chord of the array."""
        return (RADIUS_MM + depth_mm) * 1e-3 - self._chord

    def line(
        self,
        depth_mm: Float[np.ndarray, " n"],
        angle: Float[np.ndarray, " n"],
        strength: Float[np.ndarray, " n"],
        at_mm: Float[np.ndarray, " depth"],
    ) -> Complex[np.ndarray, " depth"]:
        """Return the beamformed line at some depths of scatterers at an angle from it."""
        r = (RADIUS_MM + depth_mm) * 1e-3
        options = self._must.utils.Options()
        options.dBThresh = -50
        x, z = r * np.sin(angle), r * np.cos(angle) - self._chord
        echoes, _ = self._must.simus(x, z, strength, self._delays, self._param.copy(), options)
        quadrature = self._must.rf2iq(echoes, self._param.copy())
        z = self._metres(at_mm)
        matrix = self._must.dasmtx(quadrature, np.zeros_like(z), z, self._delays, self._param.copy())
        return matrix @ quadrature.flatten(order="F")

    def speckle(self, depth_mm: float, *, seed: int, lines: int) -> tuple[Envelope, float, float]:
        """Return the envelope of even tissue about a depth, and the distances of its samples."""
        rng = np.random.default_rng(seed)
        beam_mm, step_mm = 0.3 * self.expected_mm(depth_mm), 0.08
        margin_mm = 3 * self.expected_mm(depth_mm)
        arc_mm = lines * beam_mm + 2 * margin_mm
        # A dozen scatterers in each cell of resolution, about 0.4 mm deep; equally strong, because a few strong ones
        # among weak ones would make the envelope less even than Rayleigh's.
        count = round(12 * arc_mm * (BAND_MM + 3) / (0.4 * self.expected_mm(depth_mm)))
        r = depth_mm + (BAND_MM + 3) * rng.uniform(-0.5, 0.5, count)
        across = arc_mm * rng.uniform(-0.5, 0.5, count)
        strength = rng.choice([-1.0, 1.0], count)
        at_mm = depth_mm + np.arange(-BAND_MM / 2, BAND_MM / 2, step_mm)
        result = []
        for line in range(lines):
            off = across - (line - (lines - 1) / 2) * beam_mm
            near = np.abs(off) < margin_mm
            result.append(self.line(r[near], off[near] / (RADIUS_MM + depth_mm), strength[near], at_mm))
        return np.abs(np.stack(result, axis=1)), step_mm, beam_mm

    def beam_mm(self, depth_mm: float) -> float:
        """Return the width of the beam at a depth: one scatterer, seen from lines beside it."""
        step_mm, at = 0.1, np.array([depth_mm])
        seen = []
        for off_mm in np.arange(0, 4, step_mm):
            angle = np.array([off_mm / (RADIUS_MM + depth_mm)])
            line = self.line(at, angle, np.ones(1), depth_mm + np.arange(-1.5, 1.5, 0.04))
            seen.append(np.abs(line).max())
            if seen[-1] < 0.4 * seen[0]:
                break
        return beam_width(np.array(seen), beam_mm=step_mm)

    @staticmethod
    def expected_mm(depth_mm: float) -> float:
        """Return about the width of a receiving aperture's focus, lambda times depth over aperture."""
        return PROBE.wavelength_mm * max(RECEIVE_F_NUMBER, depth_mm / (ELEMENTS * PITCH_MM))


# The phantom


def phantom_echoes(image_size: int, *, seed: int) -> tuple[Complex[np.ndarray, "1 depth beam"], Field]:
    """Return the echoes of even tissue and the field of view, sampled as finely as pictures of this size are."""
    field = Field(depth_mm=SHOWN_MM, radius_mm=RADIUS_MM, spread=0.6, crop=0.5, image_size=image_size)
    noise = np.random.default_rng(seed).standard_normal((2, 1, *field.samples)) * math.sqrt(0.5)
    echoes = point_spread(noise[0] + 1j * noise[1], transducer=PROBE, step_mm=field.step_mm, beam_mm=field.beam_mm)
    return echoes, field


def phantom_grain(depth_mm: float, *, image_size: int = 512, seed: int = 0) -> Grain:
    """Measure the phantom's even tissue in a band about a depth."""
    echoes, field = phantom_echoes(image_size, seed=seed)
    rows = slice(*(round((depth_mm + side * BAND_MM / 2) / field.step_mm) for side in (-1, 1)))
    at = (rows.start + rows.stop) // 2
    return grain(np.abs(echoes[0, rows]), step_mm=field.step_mm, beam_mm=float(field.beam_mm[at]))


def displayed_deviation_db(*, image_size: int = 96, seed: int = 0) -> tuple[float, float]:
    """Return the deviation of even tissue on the display, in dB: of the compressed samples, and of the pixels.

    The level of an exponentially distributed power deviates by 10 / ln 10 * pi / sqrt(6) = 5.57 dB.
    """
    echoes, field = phantom_echoes(image_size, seed=seed)
    # So wide a range that nothing is clipped.
    receiver = Receiver(0.0, (0.0, 0.0), (0.0,), -300.0, -300.0, 10.0, 100.0, 1.0)
    grey = compress(echoes, receiver=receiver, clutter=np.zeros(echoes.shape), frequency_mhz=MHZ, step_mm=field.step_mm)
    picture, inside = field.scan_convert(grey)[0], field.visible()
    inside[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return 100 * float(grey.std()), 100 * float(picture[inside].std())


def main() -> None:
    """Print the tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    referee = Referee()
    print(f"Rayleigh: SNR {RAYLEIGH:.3f}")
    print("| depth, mm | of | SNR | KS | axial, mm | lateral, mm |\n|---|---|---|---|---|---|")
    for depth in DEPTHS_MM:
        envelope, step_mm, beam_mm = referee.speckle(depth, seed=round(depth), lines=LINES)
        for name, seen in (
            ("PyMUST", grain(envelope, step_mm=step_mm, beam_mm=beam_mm)),
            ("phantom", phantom_grain(depth)),
        ):
            sizes = f"{seen.axial_mm:.2f} | {seen.lateral_mm:.2f}"
            print(f"| {depth:.0f} | {name} | {seen.snr:.2f} | {seen.ks:.3f} | {sizes} |", flush=True)
    print("\nWidth of the beam, mm")
    for depth in BEAM_DEPTHS_MM:
        ours = PROBE.lateral_fwhm_mm(depth, shown_mm=SHOWN_MM)
        print(f"| {depth:.0f} | {referee.beam_mm(depth):.2f} | {ours:.2f} |", flush=True)
    samples, pixels = displayed_deviation_db()
    print(f"\nOn the display: samples deviate by {samples:.2f} dB, pixels by {pixels:.2f} dB")


if __name__ == "__main__":
    main()
