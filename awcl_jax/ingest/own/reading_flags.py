"""Flags on how files are read, of `awcl_jax.ingest` and `awcl_jax.embed`; without slow imports."""

import argparse
import math
from pathlib import Path

from awcl_jax.ingest.own.items import STEPS, Reading, Rectangle


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """Add the flags that all pictures have."""
    add = parser.add_argument
    add("--max_pixels", type=count_of, default=Reading.max_pixels, metavar="N", help="largest picture (%(default)s)")
    add("--window", type=window_of, metavar="LOW,HIGH", help="values for black and white, for more than 8 bits")


def add_clips(parser: argparse.ArgumentParser) -> None:
    """Add the flags that clips have."""
    parser.add_argument(
        "--every", type=count_of, default=Reading.every, help="keep every n-th frame (default: %(default)s)"
    )
    parser.add_argument(
        "--near_duplicate",
        type=levels_of,
        default=Reading.near_duplicate,
        metavar="LEVELS",
        help="drop frames that differ from the last one by less, in grey levels of 32 x 32 averages (default: "
        "%(default)s)",
    )


def path_of(text: str) -> Path:
    """Return the path that a flag names; an empty one, as of a variable that is not set, would be this folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty; name a file or folder")
    return Path(text).expanduser()


def count_of(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1; got {text!r}")
    return int(text)


def levels_of(text: str) -> float:
    """Return a difference in grey levels, of at least 0."""
    try:
        levels = float(text)
    except ValueError:
        levels = math.nan
    if not 0 <= levels < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of grey levels >= 0; got {text!r}")
    return levels


def window_of(text: str) -> tuple[float, float]:
    """Return the values for black and white of LOW,HIGH."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise argparse.ArgumentTypeError(f"must be two finite numbers, the lower first; got {text!r}")
    return low, high


def region_of(text: str) -> str | Rectangle:
    """Return regions by name, as text; a rectangle alone as (x0, y0, x1, y1)."""
    parts = [part.strip() for part in text.split(",")]
    names = [part for part in parts if part in STEPS]
    numbers = parts[len(names) :]
    if parts[: len(names)] != names or not (len(numbers) == 4 or (names and not numbers)):
        raise argparse.ArgumentTypeError(f"must be of {', '.join(STEPS)}, with X0,Y0,X1,Y1 last; got {text!r}")
    if not numbers:
        return ",".join(names)
    if not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"must end in whole numbers X0,Y0,X1,Y1; got {text!r}")
    x0, y0, x1, y1 = map(int, numbers)
    if x0 >= x1 or y0 >= y1:
        raise argparse.ArgumentTypeError(f"must have X0 < X1 and Y0 < Y1; got {text!r}")
    return ",".join([*names, f"{x0},{y0},{x1},{y1}"]) if names else (x0, y0, x1, y1)
