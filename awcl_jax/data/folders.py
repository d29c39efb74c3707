"""Where TFDS puts prepared datasets."""

from collections.abc import Iterator
from pathlib import Path


def holds_dataset(folder: Path) -> bool:
    """Return whether a prepared dataset is at or below a folder, where `find_dataset` looks."""
    return any(True for _ in prepared_folders(folder))


def prepared_folders(folder: Path, depth: int = 3) -> Iterator[Path]:
    """Yield folders with a dataset_info.json; TFDS lays them out as name/config/version."""
    if (folder / "dataset_info.json").is_file():
        yield folder
        return
    if depth == 0:
        return
    for child in folder.iterdir():
        # TFDS writes to incomplete.* and renames it at the end; the remains of a killed run are not a dataset.
        if child.is_dir() and child.name != "downloads" and not child.name.startswith((".", "incomplete.")):
            yield from prepared_folders(child, depth - 1)
