"""How echoes come about: attenuation, point spread, receiver, and the machine's compression.

    loss(r)      = 2 f integral_0^r alpha dr'                         two-way loss in dB, alpha in dB/cm/MHz, f in MHz
    e(r, beam)   = h * [ (amplitude n + mirror) 10^(-loss / 20) ]     n complex Gaussian: fully developed speckle
    width(r)^-2  = send(r)^-2 + receive(r)^-2                         lateral point spread, two Gaussians' product
    send(r)      = sqrt(2) lambda F/D sqrt(1 + ((r - F) / r_F)^2)     focused once, at F, by an aperture D
    receive(r)   = sqrt(2) lambda max(f, r/D)                         focused again at every depth r
    grey         = (20 log10 |e| - floor) / dynamic range             log compression

The sum over many scatterers in a resolution cell is a complex Gaussian, so that |e| is Rayleigh distributed and its
mean is 1.91 times its deviation (Wagner et al. 1983, IEEE Trans. Sonics Ultrason. 30:156). The beam sent is a Gaussian
one of depth of focus 2 r_F = 7 lambda (F / D)^2; sent and received, its full width at half maximum is lambda F / D at
the focus (Szabo, Diagnostic Ultrasound Imaging, ch. 6). The aperture that receives grows with depth, r / f, up to D, so
that the grain of speckle is as wide at all depths down to f D, and wider in proportion to depth below the focus.
`benchmarks/speckle.py` compares this with a simulator of wave fields.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Complex, Float

SOUND_MM_US = 1.54
"""Speed of sound in soft tissue, in millimetres a microsecond."""

FWHM = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian, in standard deviations."""

ZONES = 8
"""Depth zones of constant lateral point spread: a machine, too, focuses zone by zone."""


@dataclasses.dataclass(frozen=True)
class Transducer:
    """What sends and receives.

    Attributes:
      frequency_mhz: centre frequency.
      cycles: length of the pulse in periods.
      f_number: focal depth over aperture.
      focus: depth of the focus as a share of the depth shown.
      receive_f_number: f, the least depth over the aperture that receives; elements look ahead, and add nothing to
        what is far to their side.
    """

    frequency_mhz: float
    cycles: float
    f_number: float
    focus: float
    receive_f_number: float = 3.0

    @property
    def wavelength_mm(self) -> float:
        return SOUND_MM_US / self.frequency_mhz

    @property
    def axial_fwhm_mm(self) -> float:
        """Half the length of the pulse, because the echo travels both ways."""
        return self.cycles * self.wavelength_mm / 2

    def aperture_mm(self, shown_mm: float) -> float:
        """Return the width of the aperture that sends, where `shown_mm` is the depth of the whole picture."""
        return self.focus * shown_mm / self.f_number

    def lateral_fwhm_mm(self, depth_mm: float, *, shown_mm: float) -> float:
        """Return the width of the beam at a depth, where `shown_mm` is the depth of the whole picture."""
        focus_mm = self.focus * shown_mm
        half_range_mm = 3.5 * self.wavelength_mm * self.f_number**2
        send = self.f_number * math.sqrt(1 + ((depth_mm - focus_mm) / half_range_mm) ** 2)
        receive = max(self.receive_f_number, depth_mm * self.f_number / focus_mm)
        return self.wavelength_mm * math.sqrt(2 / (send**-2 + receive**-2))


def transmission(
    attenuation: Float[np.ndarray, "f depth beam"], *, frequency_mhz: float, step_mm: float
) -> Float[np.ndarray, "f depth beam"]:
    """Return the amplitude that comes back from every sample, as a share of what was sent.

    A sample is attenuated only by what is above it: the surface of a bone is bright, and the shadow starts below.

    Args:
      attenuation: dB/cm/MHz, one way.
      frequency_mhz: of the transducer.
      step_mm: distance of two depth samples.
    """
    loss_db = np.zeros(attenuation.shape)
    np.cumsum(attenuation[:, :-1], axis=1, out=loss_db[:, 1:])
    loss_db *= 2 * frequency_mhz * step_mm / 10
    return np.exp(loss_db * (-math.log(10) / 20))


def penumbra(
    back: Float[np.ndarray, "f depth beam"], *, aperture_mm: float, beam_mm: Float[np.ndarray, " depth"]
) -> Float[np.ndarray, "f depth beam"]:
    """Return the amplitude that comes back, with the soft edges of shadows.

    The sound of a beam comes from the whole aperture, so that an obstacle half way to the echo takes it away gradually
    over half the aperture. We blur by a third of it, at the distance that beams have in the middle of the picture.

    Args:
      back: of each beam, as if it had no width.
      aperture_mm: that sends.
      beam_mm: distance of two beams at every depth.
    """
    from scipy.ndimage import convolve1d

    kernel = gaussian_kernel(aperture_mm / 3 / float(beam_mm[len(beam_mm) // 2]))
    return convolve1d(back, kernel / kernel.sum(), axis=2, mode="nearest")


def gaussian_kernel(fwhm: float) -> Float[np.ndarray, " taps"]:
    """Return a Gaussian of `fwhm` samples, with the sum of squares 1, so that it keeps the mean power of speckle."""
    sigma = max(fwhm / FWHM, 1e-3)
    reach = max(1, math.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return kernel / np.sqrt((kernel**2).sum())


def point_spread(
    field: Complex[np.ndarray, "f depth beam"],
    *,
    transducer: Transducer,
    step_mm: float,
    beam_mm: Float[np.ndarray, " depth"],
) -> Complex[np.ndarray, "f depth beam"]:
    """Blur a field along the beam by the pulse, and across it by the width of the beam at each depth.

    Args:
      field: scattered amplitude at every sample.
      transducer: gives the widths.
      step_mm: distance of two depth samples.
      beam_mm: distance of two beams at every depth.
    """
    from scipy.ndimage import convolve1d

    depths = field.shape[1]
    field = convolve1d(field, gaussian_kernel(transducer.axial_fwhm_mm / step_mm), axis=1, mode="reflect")
    result = np.empty_like(field)
    for rows in np.array_split(np.arange(depths), min(ZONES, depths)):
        zone = slice(rows[0], rows[-1] + 1)
        middle = int(rows[len(rows) // 2])
        width_mm = transducer.lateral_fwhm_mm(middle * step_mm, shown_mm=depths * step_mm)
        result[:, zone] = convolve1d(
            field[:, zone], gaussian_kernel(width_mm / beam_mm[middle]), axis=2, mode="reflect"
        )
    return result


@dataclasses.dataclass(frozen=True)
class Receiver:
    """What the machine adds and takes away, in dB relative to the echo of soft tissue at the skin.

    Attributes:
      tgc_db_cm_mhz: attenuation that time-gain compensation assumes, two-way. Tissue is about 1: less or more leaves
        the picture too dark or too bright with depth.
      tgc_sliders_db: departures of the sliders, evenly spaced from top to bottom.
      gain_db: overall gain of every frame.
      noise_db: electronic noise, before time-gain compensation.
      haze_db: clutter from the body wall, at the skin.
      haze_mm: depth over which the clutter falls to 1/e.
      range_db: dynamic range shown.
      gamma: exponent of the grey map.
    """

    tgc_db_cm_mhz: float
    tgc_sliders_db: tuple[float, ...]
    gain_db: tuple[float, ...]
    noise_db: float
    haze_db: float
    haze_mm: float
    range_db: float
    gamma: float


HEADROOM_DB = 17.0
"""How far soft tissue is below white."""


def compress(
    echoes: Complex[np.ndarray, "f depth beam"],
    *,
    receiver: Receiver,
    clutter: Float[np.ndarray, "f depth beam"],
    frequency_mhz: float,
    step_mm: float,
) -> Float[np.ndarray, "f depth beam"]:
    """Return grey values from 0 to 1 of the echoes: noise, time gain, logarithm, grey map.

    Args:
      echoes: after the point spread.
      receiver: settings.
      clutter: power of the noise, exponentially distributed with mean 1 as that of any complex Gaussian.
      frequency_mhz: of the transducer.
      step_mm: distance of two depth samples.
    """
    depth_mm = np.arange(echoes.shape[1]) * step_mm
    sliders = np.interp(
        depth_mm, np.linspace(0, depth_mm[-1], len(receiver.tgc_sliders_db)), np.array(receiver.tgc_sliders_db)
    )
    tgc_db = receiver.tgc_db_cm_mhz * frequency_mhz * depth_mm / 10 + sliders
    haze = 10 ** ((receiver.haze_db - 8.7 * depth_mm / receiver.haze_mm) / 10)
    noise = 10 ** (receiver.noise_db / 10)
    power = echoes.real**2 + echoes.imag**2 + clutter * (haze + noise)[:, None]
    level_db = 10 * np.log10(power + 1e-12) + (tgc_db + np.array(receiver.gain_db)[:, None])[..., None]
    grey = np.clip((level_db + receiver.range_db - HEADROOM_DB) / receiver.range_db, 0, 1)
    return grey**receiver.gamma
