"""The folder of a run: what it belongs to, and files that are never half written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from awcl_jax.config import changed_fields
from awcl_jax.errors import InputError
from awcl_jax.whole_files import written_whole

CONFIG_FILE = "config.json"
RESULTS_FILE = "results.json"
FRAMES_FILE = "test_frames.csv"
UNREADABLE_FILE = "unreadable_frames.csv"


def claim(
    workdir: Path, *, config: Mapping[str, Any], fingerprint: str, pixels: str | None = None, begun: bool = False
) -> None:
    """Begin a run in this folder, or make sure that it is the same one that goes on.

    Args:
      workdir: made where it is not there.
      config: the configuration as plain values.
      fingerprint: of the data.
      pixels: fingerprint of some of its frames' pixels; runs from before there was one go on without.
      begun: another process, perhaps on another host, has begun the run.

    Raises:
      InputError: the folder holds another run (a field that decides the numbers, or the data, differ), or other files;
        or the run that has begun is not there, for the hosts do not share the folder.
      OSError: it cannot be written.
    """
    file = workdir / CONFIG_FILE
    # Listed before the next question: what another process of this run writes comes after its config.json.
    others = [f for f in workdir.iterdir() if f.suffix != ".part"] if workdir.is_dir() else []
    if begun and not file.exists():
        raise InputError(
            f"The run has begun, but not in this host's {workdir.absolute()}: give a --workdir that all hosts share."
        )
    if not file.exists():
        if others:
            raise InputError(f"{workdir} holds files but no run ({CONFIG_FILE} is missing); give another --workdir.")
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(file, {"config": config, "data": fingerprint} | ({"pixels": pixels} if pixels else {}))
        return
    before = read_claim(workdir)
    if before.get("data") != fingerprint:
        raise InputError(
            f"{workdir} holds a run on other data (fingerprint {before.get('data')}, now {fingerprint}); "
            "give that data's path or another --workdir."
        )
    if pixels is not None and before.get("pixels", pixels) != pixels:
        raise InputError(
            f"{workdir} holds a run on other pictures, though with the same ids and labels (fingerprint "
            f"{before['pixels']}, now {pixels}); give that data's path or another --workdir."
        )
    if changed := changed_fields(before["config"], json.loads(json.dumps(config))):
        raise InputError(f"{workdir} holds another run, with other {', '.join(changed)}; give another --workdir.")


def read_claim(workdir: Path) -> dict[str, Any]:
    """What `claim` wrote of a run: its `config`, plain values by group, and `data`, the fingerprint.

    Raises:
      InputError: the file holds no configuration.
      OSError: it is not there, or cannot be read.
    """
    content = read_json(workdir / CONFIG_FILE)
    if not isinstance(content.get("config"), dict) or not isinstance(content.get("data"), str):
        raise InputError(
            f"{workdir / CONFIG_FILE} holds no configuration with the data's fingerprint; restore the file or give "
            "another run."
        )
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON so that a reader sees the old file or the new, never half of one."""
    with written_whole(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
      InputError: the file is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error}); restore the file or give another run.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; restore the file or give another run.")
    return content
