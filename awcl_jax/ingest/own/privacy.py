"""What may be kept of a patient: only pixels, a fixed list of harmless tags, and keyed hashes of ids."""

import dataclasses
import hashlib
import hmac
import os
import re
import stat
import sys
from pathlib import Path

from awcl_jax.runtime.errors import InputError

KEY_VARIABLE = "AWCL_ID_KEY"

READ_TAGS = (
    "TransferSyntaxUID",
    "SOPClassUID",
    "Modality",
    "Manufacturer",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PlanarConfiguration",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "LUTDescriptor",
    "LUTData",
    "PixelSpacing",
    "SharedFunctionalGroupsSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "SequenceOfUltrasoundRegions",
    "RegionSpatialFormat",
    "RegionLocationMinX0",
    "RegionLocationMinY0",
    "RegionLocationMaxX1",
    "RegionLocationMaxY1",
    "PhysicalUnitsXDirection",
    "PhysicalUnitsYDirection",
    "PhysicalDeltaX",
    "PhysicalDeltaY",
    "PixelData",
)
"""Tags of DICOM whose values are read: numbers, codes that are compared with known ones, and the pixels.

The maker is stored as one of `MAKERS`, or not at all. Two more are read at the head of a file, which say how long it is
and how the rest is written: FileMetaInformationGroupLength and TransferSyntaxUID.
"""

HASHED_TAGS = ("PatientID", "StudyInstanceUID")
"""Tags whose values are read to be hashed."""

MATCHED_TAGS = ("SOPInstanceUID",)
"""Tags whose values are compared with names in a table of labels, if a name is a UID; they are not kept."""

MAKERS = {
    "GE": ("ge", "general electric"),
    "Philips": ("philips",),
    "Siemens": ("siemens", "acuson"),
    "Samsung": ("samsung", "medison"),
    "Canon": ("canon", "toshiba"),
    "Mindray": ("mindray", "zonare"),
    "Fujifilm": ("fujifilm", "sonosite"),
    "Hitachi": ("hitachi", "aloka"),
    "Esaote": ("esaote",),
    "SuperSonic": ("supersonic",),
    "Butterfly": ("butterfly",),
    "Clarius": ("clarius",),
}
"""Makers of ultrasound machines -> words that identify them."""

_LEAST_KEY, _LONGEST_KEY, _DIGITS = 16, 2**16, 20


def read_key(key_file: Path | None) -> bytes | None:
    """Read the key to hash ids with from the file, else from the environment; None if there is neither.

    Raises:
      InputError: the file cannot be read, or the key is shorter than 16 bytes.
    """
    if key_file is not None:
        try:
            with key_file.open("rb") as file:
                key = file.read(_LONGEST_KEY + 1)
        except OSError as error:
            raise InputError(f"The key file {key_file} cannot be read ({error.strerror}).") from error
        origin = f"The key in {key_file}"
        if key_file.stat().st_mode & stat.S_IROTH:
            print(f"warning: {key_file} can be read by every user: chmod 600 {key_file}", file=sys.stderr)
    else:
        key = os.environb.get(KEY_VARIABLE.encode(), b"")
        origin = f"The key in ${KEY_VARIABLE}"
        if not key.strip():
            return None
    if len(key) > _LONGEST_KEY:  # with what is around it: a file without an end may have a blank at this place
        raise InputError(f"{origin} must have at most {_LONGEST_KEY:,} bytes. Make one with `openssl rand -hex 32`.")
    key = key.strip()
    if len(key) < _LEAST_KEY:
        raise InputError(
            f"{origin} must have at least {_LEAST_KEY} bytes, otherwise ids could be guessed; got {len(key)}. Make one "
            "with `(umask 077; openssl rand -hex 32 > KEY_FILE)`."
        )
    return key


class Pseudonyms:
    """Hashes of ids: the first 20 hex digits of HMAC-SHA256(key, kind 0x00 id).

    The same id of the same kind has the same hash in every dataset made with the key. Without the key, the id can
    neither be read from the hash nor be guessed by trying.
    """

    def __init__(self, key: bytes | None) -> None:
        self._key = key

    @property
    def keyed(self) -> bool:
        """Whether there is a key."""
        return self._key is not None

    def digest(self, kind: str, text: str) -> str:
        """Return the hash of a text, keyed if there is a key."""
        message = f"{kind}\0{text}".encode(errors="surrogatepass")
        if self._key is None:
            return hashlib.sha256(message).hexdigest()[:_DIGITS]
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()[:_DIGITS]


@dataclasses.dataclass(frozen=True)
class Naming:
    """How the terminal names a file.

    Attributes:
      pseudonyms: hashes a hidden path.
      hidden: whether paths are hidden, because they may name patients.
      unit: name of a file or row.
    """

    pseudonyms: Pseudonyms
    hidden: bool
    unit: str

    def of(self, number: int, path: str) -> str:
        """Return the number of a file, if it is not 0, and its path or the hash of it."""
        name = f"id {self.pseudonyms.digest('file', path)}" if self.hidden else repr(path)
        return f"{self.unit} {number}, {name}" if number else name


def maker_of(text: str) -> str:
    """Return the maker that a text names, one of `MAKERS`; empty if it names none of them."""
    words = " ".join(re.findall(r"[a-z]+", text.lower()))
    return next((maker for maker, known in MAKERS.items() if any(re.search(rf"\b{k}\b", words) for k in known)), "")
