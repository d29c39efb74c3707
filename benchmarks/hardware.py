"""Published figures of accelerators, and estimates of a step's time on them: computed, not measured.

Peaks are dense bfloat16 products. `wire` is what a chip sends at once over all its links in one direction (half of the
vendors' bidirectional figure), `link` what it sends to one neighbour in a ring; beyond a `domain` of chips (a TPU
slice, a GPU server) `beyond` is a chip's share of the network, and `crossing` what one transfer between two domains
gets.

Sources. Google's pages and the DGX page were read in stored copies; NVIDIA's product pages were not available, so their
figures are quoted from others.

  TPU v5e   docs.cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, ICI 400 GB/s bidirectional over 4 ports (2D torus of
            256), network 6.4 Tbit/s a pod; hosts of 8 chips with 2 x 100 Gbit/s.
  TPU v5p   docs.cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB, ICI 1200 GB/s bidirectional (3D torus, so 6 links;
            slices of up to 6,144), network 50 Gbit/s a chip.
  TPU v6e   docs.cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB, ICI 800 GB/s bidirectional over 4 ports (other
            copies of the page have 3,584 Gbit/s; 2D torus of 256), network 25.6 Tbit/s a pod;
            hosts with 4 x 200 Gbit/s.
  H100 SXM  nvidia.com/en-us/data-center/h100, as quoted: 1,979 TFLOP/s with sparsity, half of it without; 67 TFLOP/s in
            float32; 80 GB; NVLink 900 GB/s bidirectional. Servers of 8 with a port of up to 400 Gbit/s a GPU: the DGX
            H100 and H200 in docs.nvidia.com/dgx-basepod (reference architecture, core components).
  H200      nvidia.com/en-us/data-center/h200, as quoted: as the H100, with 141 GB.
"""

import dataclasses
import math

UTILISATION = 0.35
"""Share of the peak that a ResNet-50 reaches in training. An assumption."""

BANDWIDTH_SHARE = 0.8
"""Share of a published bandwidth that a collective reaches. An assumption."""

HOP, NETWORK_HOP = 1e-6, 5e-6
"""Seconds from a chip to its neighbour within a domain, and through the network between domains. Assumptions."""

_PASSES = 6  # bfloat16 products that XLA uses on a TPU for one of Precision.HIGHEST, which the loss requests


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator; operations and bytes a second.

    Attributes:
      name: product name.
      peak: of bfloat16 products.
      precise: of float32 products at the loss's precision.
      memory: bytes.
      wire: of all links within the domain, in one direction.
      link: to one neighbour.
      domain: chips that are linked.
      axes: of their torus; 0 for a switch.
      beyond: a chip's share of the network between domains.
      crossing: of one transfer between two domains.
    """

    name: str
    peak: float
    precise: float
    memory: float
    wire: float
    link: float
    domain: int
    axes: int
    beyond: float
    crossing: float


CHIPS = (
    Chip("TPU v5e", 197e12, 197e12 / _PASSES, 16e9, 200e9, 50e9, 256, 2, 6.4e12 / 8 / 256, 25e9),
    Chip("TPU v5p", 459e12, 459e12 / _PASSES, 95 * 2**30, 600e9, 100e9, 6144, 3, 50e9 / 8, 50e9 / 8),
    Chip("TPU v6e", 918e12, 918e12 / _PASSES, 32e9, 400e9, 100e9, 256, 2, 25.6e12 / 8 / 256, 100e9),
    Chip("H100 SXM", 989e12, 67e12, 80e9, 450e9, 450e9, 8, 0, 50e9, 50e9),
    Chip("H200", 989e12, 67e12, 141e9, 450e9, 450e9, 8, 0, 50e9, 50e9),
)


def all_gather_seconds(chip: Chip, chips: int, size: float) -> float:
    """Return the time of an all-gather to `size` bytes on each chip, or of a reduce-scatter from them.

    With D chips in a domain and G domains, each chip first fetches its G-th part over the network, then the domain
    exchanges these:

        (G - 1) / G size / D / beyond + (D - 1) / D size / wire, and the hops of both
    """
    inside, domains = min(chips, chip.domain), math.ceil(chips / chip.domain)
    sent = (domains - 1) / domains * size / inside / chip.beyond + (inside - 1) / inside * size / chip.wire
    return sent / BANDWIDTH_SHARE + _latency(chip, inside, domains)


def all_reduce_seconds(chip: Chip, chips: int, size: float) -> float:
    """Return the time of an all-reduce of `size` bytes: a reduce-scatter and an all-gather of them."""
    return 2 * all_gather_seconds(chip, chips, size)


def ring_hop_seconds(chip: Chip, chips: int, size: float) -> float:
    """Return the time until every chip has passed `size` bytes to the next, that of the slowest pair."""
    if chips == 1:
        return 0.0
    crossing = chips > chip.domain
    bandwidth, hop = (min(chip.crossing, chip.link), NETWORK_HOP) if crossing else (chip.link, HOP)
    return size / bandwidth / BANDWIDTH_SHARE + hop


def torus(chips: int, axes: int) -> list[int]:
    """Return the edges of a torus of `chips` chips, a power of two, as equal as possible."""
    doublings = round(math.log2(chips))
    assert 2**doublings == chips, "the number of chips must be a power of two"
    return [2 ** (doublings // axes + (axis < doublings % axes)) for axis in range(axes)]


def _latency(chip: Chip, inside: int, domains: int) -> float:
    """Return the latency of all chips' hops: half around each edge of the torus, and a tree over the domains."""
    local = (sum(edge // 2 for edge in torus(inside, chip.axes)) if chip.axes else 1) if inside > 1 else 0
    return local * HOP + math.ceil(math.log2(domains)) * NETWORK_HOP
