"""Datasets that this package can prepare, each with a TFDS builder."""

import contextlib
import importlib
import io
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from awcl_jax.runtime.bar import Bar
from awcl_jax.runtime.cache import cache_folder
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import locked

BUILDERS = {
    "phantom": "awcl_jax.ingest.phantom:Phantom",
    "fetal_planes_db": "awcl_jax.ingest.public.fetal_planes_db:FetalPlanesDb",
    "fetal_head_biometry": "awcl_jax.ingest.public.fetal_head_biometry:FetalHeadBiometry",
    "hc18": "awcl_jax.ingest.public.hc18:Hc18",
    "busi": "awcl_jax.ingest.public.busi:Busi",
    "camus": "awcl_jax.ingest.public.camus:Camus",
    "echonet_dynamic": "awcl_jax.ingest.public.echonet_dynamic:EchonetDynamic",
    "usgra": "awcl_jax.ingest.public.usgra:Usgra",
    "ultrabench": "awcl_jax.ingest.public.ultrabench:Ultrabench",
}
"""Name of a dataset -> module and class of its builder, imported on demand."""


PHANTOM_PRESETS = ("default", "tiny", "heart", "heart_tiny")


def make_builder(name: str, **settings: Any) -> tfds.core.DatasetBuilder:
    """Return the builder of a dataset with its settings."""
    module, _, builder = BUILDERS[name].partition(":")
    return getattr(importlib.import_module(module), builder)(**settings)


def prepare_phantom(preset: str) -> Path:
    """Return the folder of the phantom, prepared in the user's cache folder if it does not exist."""
    out = cache_folder("datasets")
    builder = make_builder("phantom", config=preset, data_dir=out, file_format="array_record")
    if not _is_prepared(builder):
        prepare(builder, out, wait=True)
    return Path(builder.data_path)


def prepare(builder: tfds.core.DatasetBuilder, out: Path, *, wait: bool = False) -> None:
    """Write a dataset, after removing the leftovers of a killed run.

    Args:
      builder: writes below `out`.
      out: folder, created if it does not exist.
      wait: if another process prepares a dataset there, wait for it, and keep a dataset that it has finished.

    Raises:
      InputError: another process prepares a dataset there, and `wait` is not set.
      OSError: the disk is full or not writable.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(builder.data_dir)
    try:
        with only_writer(out, wait=wait):
            if _is_prepared(builder):
                return
            _remove_leftovers(folder)
            frames = getattr(builder, "frames", None)
            print(f"Preparing {folder}" + (f": {frames:,} simulated frames, made once" if frames else ""))
            # TFDS always prints on stdout that it downloads an unknown size.
            with _one_bar(builder, frames), contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
    except RuntimeError as error:
        # array_record raises this when the disk is full.
        if "write() failed" in str(error):
            raise OSError(str(error)) from error
        raise
    finally:
        # Empty folders that TFDS has made.
        for empty in (out / "downloads" / "extracted", out / "downloads", *_parents(folder, out), *made):
            with contextlib.suppress(OSError):
                empty.rmdir()


@contextlib.contextmanager
def _one_bar(builder: tfds.core.DatasetBuilder, total: int | None) -> Iterator[None]:
    """Show on a terminal how many frames are written, instead of TFDS's bars of splits, examples and shards.

    Frames of the user's own are decoded before, with a bar of their own.
    """
    generates = isinstance(builder, tfds.core.GeneratorBasedBuilder)

    def counted(frames: Iterable[Any]) -> Iterator[Any]:
        for frame in frames:
            yield frame
            bar.update()

    def counted_splits(dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        return {
            split: counted(frames) for split, frames in type(builder)._split_generators(builder, dl_manager).items()
        }

    tfds.disable_progress_bar()
    try:
        with Bar(total=total, desc="Writing", unit=" frames", disable=None if generates else True) as bar:
            if generates:
                builder._split_generators = counted_splits
            yield
    finally:
        if generates:
            del builder._split_generators  # that of its class is left
        tfds.enable_progress_bar()


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    # TFDS warns about a missing folder.
    return Path(builder.data_dir).exists() and builder.is_prepared()


def _parents(folder: Path, out: Path) -> list[Path]:
    """Return the folders between a version folder and `out`, inner ones first."""
    return [parent for parent in folder.parents if parent.is_relative_to(out) and parent != out]


@contextlib.contextmanager
def only_writer(out: Path, *, wait: bool) -> Iterator[None]:
    """Lock a folder for this process; the system releases it even if the process is killed.

    Args:
      out: the folder.
      wait: if another process has locked it, wait.

    Raises:
      InputError: another process has locked it, and `wait` is not set.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out, wait=wait))
        except BlockingIOError:
            raise InputError(
                f"Another process is preparing a dataset in {out}. Wait for it, or choose another --out."
            ) from None
        yield


def _remove_leftovers(folder: Path) -> None:
    """Remove leftovers of killed runs: TFDS writes into incomplete.*_VERSION and renames that at the end."""
    for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):
        print(f"Removing {leftover}, left by an interrupted run.")
        shutil.rmtree(leftover)


def require_apart(out: Path, folder: str | Path | None, flag: str) -> None:
    """Refuse a folder for a dataset that is in a folder that it is made of.

    Args:
      out: the folder for the dataset.
      folder: what it is made of; a file or None is never refused.
      flag: that names it.

    Raises:
      InputError: one is in the other.
    """
    made_of = None if folder is None else Path(folder).expanduser().resolve()
    if made_of is not None and made_of.is_dir() and out.resolve().is_relative_to(made_of):
        raise InputError(
            f"--out={out} must not be in --{flag}={folder}, whose files it would be among next time. Choose another "
            "folder."
        )
