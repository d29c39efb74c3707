"""UltraBench: the sets that its command prepares (Tupper and Gagné 2025), one at a time, as a TFDS dataset.

SET_vVERSION/                                     such as pocus_v1.0.1
  train.json, validation.json, test.json          one object per frame: its files, label and, in some sets, patient
  images/, masks/                                 as those name them

Label and mask of a set come together, so that one dataset serves its classification and its segmentation. The masks of
what the machine scanned (`scan_mask`) are not read.

Frames are split as published, or by patient. Some sets name their patients, in POCUS only the clip of a frame is known,
and in others nothing: a table of patients closes that gap, and patients in two splits are refused.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds

from awcl_jax.data.about import PATIENTS, patients_as_json
from awcl_jax.data.anatomy import Taxonomy
from awcl_jax.data.png import png_size, read_lesion, read_mask, read_png
from awcl_jax.data.record import frame_features
from awcl_jax.ingest.public.folder import FolderBuilder, Found, accept_missing, draw_split, record_of
from awcl_jax.ingest.public.tables import read_table
from awcl_jax.runtime.errors import InputError, first_line

SPLITS = {"train": "train", "validation": "val", "test": "test"}
"""Name of a file without its ending -> split."""

SPLIT_BY = ("published", "patient")

_CITATION = """\
@article{tupper2025,
  title = {Revisiting Data Augmentation for Ultrasound Images},
  author = {Tupper, Adam and Gagn{\\'e}, Christian},
  journal = {Transactions on Machine Learning Research},
  issn = {2835-8856},
  year = {2025},
}"""


@dataclasses.dataclass(frozen=True)
class Patients:
    """How a set tells patients apart.

    Attributes:
      key: of an entry; empty if each image counts as a patient.
      source: what that is, as a page says it.
      confirmed: whether the set's publisher says that those are patients.
    """

    key: str = ""
    source: str = "the images, because the set names no patients"
    confirmed: bool = False


@dataclasses.dataclass(frozen=True)
class BenchmarkSet:
    """A set of the benchmark.

    Attributes:
      groups: organ -> the classes of its frames. Over all groups they are in the order of the set's labels.
      labelled: whether frames have a `label`; otherwise all of them show the one class.
      mask: key of the mask's file; empty if the set has none.
      structures: of the mask's values 0, 1, ...
      patients: how its patients are told apart.
    """

    groups: Mapping[str, tuple[str, ...]]
    labelled: bool = True
    mask: str = ""
    structures: tuple[str, ...] = ()
    patients: Patients = Patients()

    @property
    def taxonomy(self) -> Taxonomy:
        return Taxonomy(self.groups)


_NUMBERS = Patients("patient", "the publisher's patient numbers", confirmed=True)
_BUTTERFLY = ("carotid", "2ch", "lungs", "ivc", "4ch", "bladder", "thyroid", "plax", "morisons_pouch")
_FINDINGS = ("normal", "benign", "malignant")
_ONE_IMAGE = Patients(source="UltraBench, which counts each image as a patient", confirmed=True)
_CLIPS = Patients("source", "the clips and images that frames were taken from")

SETS = {
    "aul_liver": BenchmarkSet(
        {"liver": _FINDINGS}, mask="liver_mask", structures=("background", "liver"), patients=_ONE_IMAGE
    ),
    "aul_mass": BenchmarkSet(
        {"liver": _FINDINGS}, mask="mass_mask", structures=("background", "mass"), patients=_ONE_IMAGE
    ),
    "butterfly": BenchmarkSet(
        {name: (name,) for name in _BUTTERFLY},
        patients=_NUMBERS,
    ),
    "camus": BenchmarkSet(
        {"heart": ("poor", "medium", "good")},
        mask="mask",
        structures=("background", "left ventricle", "myocardium", "left atrium"),
        patients=_NUMBERS,
    ),
    "fatty_liver": BenchmarkSet({"liver": ("normal", "fatty")}, patients=_NUMBERS),
    "gbcu": BenchmarkSet({"gallbladder": _FINDINGS}),
    "mmotu": BenchmarkSet(
        {
            "ovary": (
                "chocolate cyst",
                "serous cystadenoma",
                "teratoma",
                "theca cell tumor",
                "simple cyst",
                "normal ovary",
                "mucinous cystadenoma",
                "high grade serous",
            )
        },
        mask="tumor_mask_binary",
        structures=("background", "tumor"),
    ),
    "open_kidney": BenchmarkSet(
        {"kidney": ("kidney",)},
        labelled=False,
        mask="capsule_mask",
        structures=("background", "capsule"),
        patients=_ONE_IMAGE,
    ),
    "pocus": BenchmarkSet(
        {"lung": ("regular", "pneumonia", "covid")},
        patients=_CLIPS,
    ),
    "psfhs": BenchmarkSet(
        {"birth canal": ("birth canal",)},
        labelled=False,
        mask="psfh_mask",
        structures=("background", "pubic symphysis", "fetal head"),
    ),
    "stanford_thyroid": BenchmarkSet(
        {"thyroid": ("benign", "malignant")}, mask="tumor_mask", structures=("background", "nodule"), patients=_NUMBERS
    ),
}
"""Name of a set -> what its files hold, as its documentation says."""


class Ultrabench(FolderBuilder):
    """TFDS builder of a set of UltraBench; see `awcl_jax.data.record` for the record, `FolderBuilder` to make.

    Args:
      source: the folder that UltraBench wrote, SET_vVERSION.
      patients: a CSV with the columns `source` and `patient`: whose frames those of a source are. A source is a clip or
        image of POCUS, in other sets a frame's file in images/.
      split: "published", or "patient" to split patients here.
      **kwargs: of `FolderBuilder`.

    Raises:
      InputError: there is no source, it is not named as UltraBench names folders, or `split` is unknown.
    """

    HOMEPAGE = "https://github.com/adamtupper/ultrabench"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Labels and masks of UltraBench 1.0.1."}  # noqa: RUF012
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SETS]  # noqa: RUF012

    def __init__(
        self,
        *,
        source: str | Path | None = None,
        patients: str | Path | None = None,
        split: str = "published",
        config: str | None = None,
        **kwargs: Any,
    ) -> None:
        if split not in SPLIT_BY:
            raise InputError(f"--split must be one of {', '.join(SPLIT_BY)}; got {split!r}.")
        self.patients = None if patients is None else Path(patients)
        self.split_by = split
        super().__init__(source=source, config=config or _set_of(source), **kwargs)
        self.set = SETS[self.builder_config.name]

    def _info(self) -> tfds.core.DatasetInfo:
        one = SETS[self.builder_config.name]
        return self.describe(
            description=f"The set {self.builder_config.name} of UltraBench, with its labels and masks.",
            features=frame_features(one.taxonomy, mask_names=one.structures),
            license="see the set's publisher; UltraBench's code is MIT",
            citation=_CITATION,
        )

    def flags(self) -> dict[str, Any]:
        return {**super().flags(), "split": self.split_by}

    def settings(self, source: Path) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path in (*(source / f"{name}.json" for name in SPLITS), *([self.patients] if self.patients else ())):
            digest.update(path.read_bytes() if path.is_file() else b"")
        return {**super().settings(source), "tables_sha256": digest.hexdigest()[:16]}

    def find(self, source: Path) -> tuple[list[Found], list[str]]:
        named = None if self.patients is None else _read_patients(self.patients)
        entries = [
            (split, place, entry)
            for file, split in SPLITS.items()
            for place, entry in _read_entries(source / f"{file}.json")
        ]
        if named is not None:
            sources = dict.fromkeys(_source_of(entry, place) for _, place, entry in entries)
            if unnamed := [name for name in sources if name not in named]:
                raise InputError(
                    f"{self.patients} names no patient of {len(unnamed):,} source(s) (of {len(sources):,}), the first "
                    f"{unnamed[0]}. Add a row for each."
                )
        found: list[Found] = []
        missing: list[str] = []
        for split, place, entry in entries:
            image = _file_of(entry, "image", source, place)
            mask = _file_of(entry, self.set.mask, source, place) if self.set.mask else None
            if image is None:
                raise InputError(f"{place}: image is missing. UltraBench writes one for every frame.")
            frame, clip = image.stem, _source_of(entry, place)
            if named is not None:
                patient = named[clip]
            else:
                patient = _text_of(entry, key, place) if (key := self.set.patients.key) else frame
            # A frame of POCUS names its clip; elsewhere a patient is one scan.
            scan = clip if "source" in entry else patient
            kind = _class_of(entry, self.set, place)
            if image.is_file() and (not self.set.mask or (mask and mask.is_file())):
                read = functools.partial(_record, self.set, frame, patient, scan, kind, image, mask)
                found.append(Found(frame, patient, split, read))
            else:
                missing.append(frame)
        accept_missing(
            missing,
            found=found,
            skip=self.skip_missing,
            what=f"{source} lacks the image{' or the mask' * bool(self.set.mask)} of {len(missing):,} frame(s)",
        )
        if self.split_by == "patient":
            found = [dataclasses.replace(frame, split=draw_split(frame.patient_id)) for frame in found]
        else:
            _require_patients_apart(found, source)
        self.info.metadata[PATIENTS] = (
            patients_as_json("a table of patients", confirmed=True)
            if named is not None
            else patients_as_json(self.set.patients.source, confirmed=self.set.patients.confirmed)
        )
        return found, missing


def _set_of(source: str | Path | None) -> str:
    """Return the set that a folder holds, by its name."""
    known = ", ".join(SETS)
    if source is None:
        raise InputError("--source is missing. Set it to the folder that UltraBench wrote, such as pocus_v1.0.1.")
    name = re.sub(r"_v[^_]*$", "", Path(source).resolve().name)
    if name not in SETS:
        raise InputError(
            f"--source must be a folder that UltraBench wrote, named SET_vVERSION; got {str(source)!r}. Sets: {known}."
        )
    return name


def _read_entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return (place for messages, entry) of each frame in a file of UltraBench."""
    if not path.is_file():
        raise InputError(f"{path.parent} has no {path.name}. UltraBench writes {', '.join(SPLITS)}.json.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({first_line(error)}).") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path} must be a list of objects, one per frame.")
    return [(f"{path}, frame {at}", entry) for at, entry in enumerate(entries)]


def _read_patients(path: Path) -> dict[str, str]:
    """Return the patient of each source in a table."""
    patients: dict[str, str] = {}
    for place, cells in read_table(path, ("source", "patient")):
        if not cells["source"] or not cells["patient"]:
            raise InputError(f"{place}: source and patient must be filled in.")
        if patients.setdefault(cells["source"], cells["patient"]) != cells["patient"]:
            raise InputError(f"{place}: {cells['source']} has two patients; name one.")
    return patients


def _file_of(entry: Mapping[str, Any], key: str, source: Path, place: str) -> Path | None:
    """Return a file that an entry names, in the folder; None if it names none."""
    name = entry.get(key)
    if name is None or name != name:  # pandas writes a missing name as NaN
        return None
    path = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("..")
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{place}: {key} must be a path in {source}; got {name!r}.")
    return source / path


def _source_of(entry: Mapping[str, Any], place: str) -> str:
    """Return what a table of patients calls a frame's origin."""
    return _text_of(entry, "source" if "source" in entry else "image", place).removeprefix("images/")


def _text_of(entry: Mapping[str, Any], key: str, place: str) -> str:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(f"{place}: {key} must be a name or a number; got {value!r}.")
    return str(value)


def _class_of(entry: Mapping[str, Any], one: BenchmarkSet, place: str) -> int:
    names = one.taxonomy.fine
    label = entry.get("label") if one.labelled else 0
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(names):
        listed = ", ".join(f"{value} {name}" for value, name in enumerate(names))
        raise InputError(f"{place}: label must be one of {listed}; got {label!r}.")
    return label


def _require_patients_apart(found: list[Found], source: Path) -> None:
    """Refuse a published split in which a test patient is in training or validation, too."""
    learnt = {frame.patient_id for frame in found if frame.split != "test"}
    test = [frame for frame in found if frame.split == "test"]
    shared = [frame.patient_id for frame in test if frame.patient_id in learnt]
    if shared:
        raise InputError(
            f"{len(shared):,} of {len(test):,} test frames in {source} are of patients in train or validation, the "
            f"first {shared[0]}. Use --split=patient to split by patient."
        )


def _record(
    one: BenchmarkSet, frame: str, patient: str, scan: str, kind: int, image: Path, mask: Path | None
) -> dict[str, Any]:
    picture = read_png(image)
    size = png_size(picture)
    structures = None
    if mask is not None:
        # Two-valued masks are copied from publishers, who write 1 or 255.
        two_valued = len(one.structures) == 2
        structures = read_lesion(mask, size=size) if two_valued else read_mask(mask, one.structures, size=size)
    name = one.taxonomy.fine[kind]
    return record_of(
        frame,
        image=picture,
        patient_id=patient,
        scan_id=scan,
        fine=name,
        coarse=one.taxonomy.coarse_of(name),
        mask=structures,
    )
