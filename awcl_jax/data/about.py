"""What a prepared dataset says about itself: its name, whether it is simulated, and where its patients come from."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from awcl_jax.runtime.errors import InputError, first_line

PATIENTS = "patients"
"""Key of the dataset's metadata, see `patients_as_json`."""

KINDS = {
    "simulated": "simulated frames",
    "own": "frames of the user's own",
    "public": "a public dataset",
    "other": "prepared by another program",
}
"""Kind of a dataset -> what a page or card calls it."""

PUBLIC = {
    "fetal_planes_db": "the publisher's patient numbers",
    "fetal_head_biometry": "the patient numbers of FETAL_PLANES_DB",
    "camus": "the publisher's patient folders",
    "echonet_dynamic": "the publication, which counts each video as a patient",
    "hc18": "",
    "busi": "",
    "usgra": "",
    "ultrabench": "",
}
"""Public dataset -> who names its patients; empty where nobody does."""

_UNNAMED = "the names of the publisher's files, because the publication names no patients"


@dataclasses.dataclass(frozen=True)
class About:
    """A prepared dataset in its own words.

    Attributes:
      name: as TFDS stores it.
      preset: of the phantom, or set of a benchmark; empty for others.
      kind: of `KINDS`.
      patients: what its patients were taken from; empty if unknown.
      confirmed: whether someone who knows named the patients: the user, the publisher, a tag or a simulation. False if
        they were guessed from names of files or folders, or if nothing is known.
      region: part of the user's pictures that its frames are, as `awcl_jax.ingest --region`; empty if that is unknown.
    """

    name: str
    preset: str
    kind: str
    patients: str
    confirmed: bool
    region: str = ""

    @classmethod
    def read(cls, path: Path) -> "About":
        """Read what is stored beside the records.

        Args:
          path: folder of the prepared dataset (TFDS's version folder).

        Raises:
          InputError: a file is not JSON.
        """
        info, metadata = _read(path / "dataset_info.json"), read_metadata(path)
        name, preset = str(info.get("name", "")), str(info.get("configName", ""))
        if "command" in (settings := _object(metadata.get("settings"))):  # only `ingest` of own scans stores one
            stated, region = _object(metadata.get(PATIENTS)), as_region(settings.get("region"))
            return cls(name, "", "own", str(stated.get("from", "")), stated.get("confirmed") is True, region)
        if name == "phantom":
            return cls(name, preset, "simulated", "the simulation", confirmed=True)
        if name in PUBLIC and PATIENTS in metadata:  # sets that differ in who names their patients
            stated = _object(metadata[PATIENTS])
            return cls(name, preset, "public", str(stated.get("from", "")), stated.get("confirmed") is True)
        if name in PUBLIC:
            return cls(name, "", "public", PUBLIC[name] or _UNNAMED, confirmed=bool(PUBLIC[name]))
        return cls(name, "", "other", "", confirmed=False)

    @property
    def title(self) -> str:
        """Return name and kind, such as `own_scans (frames of the user's own)`."""
        return f"{self.name}{', ' * bool(self.preset)}{self.preset} ({KINDS[self.kind]})"

    @property
    def apart(self) -> str:
        """Return one sentence on whether patients are apart in the splits, and what that rests on."""
        if self.confirmed:
            return f"Each patient is in one split only; patients are named by {self.patients}."
        if self.patients:
            return (
                f"Patients are a guess from {self.patients}, which nobody confirmed: one patient may be in two splits."
            )
        return "The dataset does not record where its patients come from: one patient may be in two splits."


def apart(datasets: Sequence[About]) -> str:
    """Return what `About.apart` says of the labelled dataset of a run, and what that does not cover."""
    first, *others = datasets
    if not others:
        return first.apart
    them = ", ".join(other.name for other in others)
    return (
        f"{first.apart} Its patients are not compared with those of {them}, whose frames were added without labels: a "
        "test patient may be among them."
    )


def read_metadata(dataset: Path) -> dict[str, Any]:
    """Return the metadata of a prepared dataset; empty if it has none.

    Raises:
      InputError: the file is not JSON.
    """
    return _read(dataset / "metadata.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        return _object(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({first_line(error)}). Prepare the dataset again.") from None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def patients_as_json(source: str, *, confirmed: bool) -> dict[str, Any]:
    """Return the metadata of a dataset's patients: what they were taken `from`, and whether that is `confirmed`."""
    return {"from": source, "confirmed": confirmed}


def as_region(stored: Any) -> str:
    """Return a region as it is written on a command line; empty if this is none."""
    text = ",".join(map(str, stored)) if isinstance(stored, list) else stored
    return text if isinstance(text, str) and re.fullmatch("[a-z0-9,]{1,100}", text) else ""


def is_cut(region: str) -> bool:
    """Return whether frames are known to be a part of their pictures."""
    return region not in ("", "whole")


def as_json(datasets: Sequence[About]) -> list[dict[str, Any]]:
    """Return datasets as a run stores them under `datasets`, the labelled one first; without an unknown region."""
    fields = [dataclasses.asdict(dataset) for dataset in datasets]
    return [{name: value for name, value in one.items() if name != "region" or value} for one in fields]


def are_datasets(stored: Any) -> bool:
    """Return whether a value has the form of `as_json`."""
    types = {field.name: bool if field.name == "confirmed" else str for field in dataclasses.fields(About)}
    return (
        isinstance(stored, list)
        and bool(stored)
        and all(
            isinstance(one, dict)
            and one.keys() | {"region"} == types.keys()
            and all(isinstance(value, types[name]) for name, value in one.items())
            and one["kind"] in KINDS
            for one in stored
        )
    )


def of_run(config: Mapping[str, Any], *stored: Any) -> list[About]:
    """Return the datasets of a run, as it stored them; of a run that stored none, what its configuration shows.

    Args:
      config: `group.field` -> value.
      *stored: places where `datasets` may be; the first valid one is used.
    """
    for datasets in stored:
        if are_datasets(datasets):
            return [About(**dataset) for dataset in datasets]
    name, preset = str(config.get("data.dataset", "")), str(config.get("data.preset", ""))
    if name == "phantom" and not config.get("data.path"):
        return [About(name, preset, "simulated", "the simulation", confirmed=True)]
    # The phantom is the default of `data.dataset`: beside a path it says nothing.
    return [About("a dataset that the run did not record" if name == "phantom" else name, "", "other", "", False)]


def recorded_fields(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields without `data.dataset` and `data.preset` if `data.path` replaced them.

    Args:
      config: `group.field` -> value of the whole configuration.
      fields: those to show.
    """
    unused = ("data.dataset", "data.preset") if config.get("data.path") else ()
    return {name: value for name, value in fields.items() if name not in unused}
