"""Datasets that this package can prepare, each by a TFDS builder of its own."""

import contextlib
import importlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

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
}
"""Name of a dataset -> where its builder is; imported when it is wanted."""


PHANTOM_PRESETS = ("default", "tiny", "heart", "heart_tiny")


def make_builder(name: str, **settings: Any) -> tfds.core.DatasetBuilder:
    """The builder of a dataset, with settings of its own."""
    module, _, builder = BUILDERS[name].partition(":")
    return getattr(importlib.import_module(module), builder)(**settings)


def prepare_phantom(preset: str) -> Path:
    """Folder of the phantom, made in the user's cache folder where it is not there yet."""
    out = cache_folder("datasets")
    builder = make_builder("phantom", config=preset, data_dir=out, file_format="array_record")
    if not _is_prepared(builder):
        prepare(builder, out, wait=True)
    return Path(builder.data_path)


def prepare(builder: tfds.core.DatasetBuilder, out: Path, *, wait: bool = False) -> None:
    """Write a dataset; what a run that was killed has left of it is removed before.

    Args:
      builder: writes below `out`.
      out: folder, made where it is not there.
      wait: if another process prepares a dataset there, wait for it; what it has made meanwhile is left as it is.

    Raises:
      InputError: another process prepares a dataset there, without `wait`.
      OSError: the disk is full, or cannot be written.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(builder.data_dir)
    try:
        with only_writer(out, wait=wait):
            if _is_prepared(builder):
                return
            _remove_leftovers(folder)
            print(f"Preparing {folder}")
            # TFDS says on stdout that it downloads an unknown size, whatever it does; its progress bars are on stderr.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
    except RuntimeError as error:
        # What array_record makes of a disk that is full.
        if "write() failed" in str(error):
            raise OSError(str(error)) from error
        raise
    finally:
        # Folders that TFDS makes and nobody filled.
        for empty in (out / "downloads" / "extracted", out / "downloads", *_parents(folder, out), *made):
            with contextlib.suppress(OSError):
                empty.rmdir()


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    # TFDS warns of a folder that is not there.
    return Path(builder.data_dir).exists() and builder.is_prepared()


def _parents(folder: Path, out: Path) -> list[Path]:
    """The folders between a version folder and `out`, the inner ones first."""
    return [parent for parent in folder.parents if parent.is_relative_to(out) and parent != out]


@contextlib.contextmanager
def only_writer(out: Path, *, wait: bool) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it even when the process is killed.

    Args:
      out: the folder.
      wait: if another process holds it, wait for that.

    Raises:
      InputError: another process holds it, without `wait`.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out, wait=wait))
        except BlockingIOError:
            raise InputError(
                f"Another process prepares a dataset in {out}: wait for it, or choose another --out."
            ) from None
        yield


def _remove_leftovers(folder: Path) -> None:
    """Remove what runs left that were killed: TFDS writes into incomplete.*_VERSION and renames that at the end."""
    for leftover in folder.parent.glob(f"incomplete.*_{folder.name}"):
        print(f"Removing {leftover}, which an interrupted run left.")
        shutil.rmtree(leftover)
