"""Fixtures that several tests share: the real data, small folders in a publisher's layout, small datasets."""

import dataclasses
import gc
import itertools
import os
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import jaxlib
import numpy as np
import pytest
import tensorflow_datasets as tfds

from awcl_jax.data.anatomy import FETAL_PLANES_DB
from awcl_jax.data.record import frame_features
from awcl_jax.ingest.phantom import Phantom
from awcl_jax.ingest.prepare import prepare
from awcl_jax.ingest.public.fetal_planes_db import FetalPlanesDb

# Before any other call of JAX: eight devices out of one CPU, so that every test of a step can spread it.
jax.config.update("jax_num_cpu_devices", 8)

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
REAL_DATA = Path(os.environ.get("AWCL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_configure() -> None:
    """The tests compile more than they compute, and are a third faster with a compiler that does less."""
    gc.disable()  # until all is imported
    jax.config.update("jax_disable_most_optimizations", True)
    # The commands that tests start: the bits that users get, at LLVM's level 1 in three quarters of the time. XLA ends
    # a process whose flags it does not know, as another version may.
    if f"jaxlib=={jaxlib.__version__}" in CONSTRAINTS.read_text().split():
        flags = ("--xla_backend_optimization_level=1", "--xla_cpu_parallel_codegen_split_count=1")
        given = os.environ.get("XLA_FLAGS", "").split()
        os.environ["XLA_FLAGS"] = " ".join([*given, *(flag for flag in flags if flag not in given)])


@pytest.fixture
def optimised() -> Iterator[None]:
    """What the test compiles is compiled as for users: for bounds that hold for their numbers."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """What was imported stays, and need not be looked at by every collection of garbage."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For what is made once, whichever worker comes first."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def compiled_once(common_folder: Path) -> None:
    """Programs that several tests compile alike."""
    jax.config.update("jax_compilation_cache_dir", str(common_folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """The names of the programs that this process compiles during a test, one for each time."""
    names: list[str] = []

    def note(event: str, _: float, **about: Any) -> None:
        if event.endswith("backend_compile_duration"):
            names.append(about.get("fun_name", ""))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real ultrasound data; the test is skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data in {REAL_DATA}; set AWCL_DATA to its folder")
    return REAL_DATA


@pytest.fixture(scope="session")
def real_dataset(real_data: Path, common_folder: Path) -> Path:
    """FETAL_PLANES_DB of the real data, prepared."""
    builder = FetalPlanesDb(source=real_data / "FETAL_PLANES_DB", data_dir=common_folder / "real")
    prepare(builder, common_folder / "real", wait=True)
    return Path(builder.data_dir)


@pytest.fixture(scope="session")
def phantom(common_folder: Path) -> Path:
    """The tiny phantom, prepared."""
    builder = Phantom(config="tiny", data_dir=common_folder / "phantom", file_format="array_record")
    prepare(builder, common_folder / "phantom", wait=True)
    return Path(builder.data_dir)


@dataclasses.dataclass(frozen=True)
class Planes:
    """A folder in the layout of FETAL_PLANES_DB."""

    folder: Path
    header: str = "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train "

    def write(self, *rows: str, name: str = "FETAL_PLANES_DB_data.csv", images: bool = True) -> Path:
        """Write a CSV of these rows and, with `images`, a picture for each."""
        (self.folder / "Images").mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text("\n".join([self.header, *rows]) + "\n")
        if images:
            for row in rows:
                self.draw(row.split(";")[0])
        return self.folder

    def draw(self, name: str) -> np.ndarray:
        """Write a picture that only this name has."""
        image = speckle(name)
        cv2.imwrite(str(self.folder / "Images" / f"{name}.png"), image)
        return image


def speckle(name: str) -> np.ndarray:
    """A grey picture [32, 40] that only this name has."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (32, 40), np.uint8)


PLANES_ROWS = (
    "a1;1;Fetal abdomen;Not A Brain;Op. 1;Aloka;1",
    "a2;01;Fetal brain;Trans-thalamic;Op. 1;Aloka;1",
    "b1;2;Fetal brain;Other;Op. 2;Voluson E6;1",
    "b2;2;Other;Not A Brain;Op. 2;Voluson E6;1",
    "c1;3;Maternal cervix;Not A Brain;Op. 1;Aloka;0",
    "d1;4;Fetal femur;Not A Brain;Other;Voluson S10;0",
    "d2;4;Fetal femur;Not A Brain;Other;Voluson S10;0",
)


@pytest.fixture
def planes(tmp_path: Path) -> Planes:
    """An empty folder to be filled in the layout of FETAL_PLANES_DB."""
    return Planes(tmp_path / "source")


class FrameSet(tfds.core.GeneratorBasedBuilder):
    """Frames given as records, split by split."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, splits: Mapping[str, Sequence[dict[str, Any]]], masks: bool = False, **kwargs: Any) -> None:
        self.given, self.masks = splits, masks
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        names = ("background", "brain") if self.masks else ()
        return tfds.core.DatasetInfo(
            builder=self, features=frame_features(FETAL_PLANES_DB, mask_names=names), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(records) for split, records in self.given.items()}

    def _generate_examples(self, records: Sequence[dict[str, Any]]) -> Iterator:
        yield from enumerate(records)


def frame_record(frame_id: str, patient_id: str = "p", **fields: Any) -> dict[str, Any]:
    """A record whose picture only this frame has; images and masks are given as arrays."""
    record = {
        "image": speckle(frame_id),
        "frame_id": frame_id,
        "scan_id": f"{patient_id}-s",
        "patient_id": patient_id,
        "machine": "Aloka",
        "anatomy_fine": "femur",
        "anatomy_coarse": "femur",
        "pixel_mm": 0.5,
    }
    record |= fields
    for picture in {"image", "mask"} & record.keys():
        if isinstance(record[picture], np.ndarray):
            record[picture] = cv2.imencode(".png", record[picture])[1].tobytes()
    return record


@pytest.fixture
def prepare_frames(tmp_path: Path) -> Callable[..., Path]:
    """Prepare a dataset of records, split by split, and give its folder."""

    def prepare(folder: str = "frames", *, masks: bool = False, **splits: Sequence[dict[str, Any]]) -> Path:
        builder = FrameSet(splits=splits, masks=masks, data_dir=tmp_path / folder, file_format="array_record")
        builder.download_and_prepare()
        return Path(builder.data_dir)

    return prepare


def decoded_records(builder: tfds.core.DatasetBuilder) -> dict[str, list[dict[str, Any]]]:
    """Prepare a dataset, open it anew without its builder, and decode all records, split by split."""
    builder.download_and_prepare()
    opened = tfds.builder_from_directory(builder.data_dir)
    return {split: list(opened.as_data_source(split)) for split in opened.info.splits}


@pytest.fixture
def unused_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def new_bucket() -> Iterator[Callable[[], Any]]:
    """Makes a new bucket of a server on this machine that speaks Google Cloud Storage's protocol to the real client."""
    from gcp_storage_emulator.server import create_server
    from google.cloud import storage as client

    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    number = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("http.server.HTTPServer.request_queue_size", 64)  # with 5 a client's threads wait for each other
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
        patch.setenv("NO_GCE_CHECK", "true")  # google-auth would look for a cloud machine's credentials, for seconds
        with create_server("localhost", port, in_memory=True):
            yield lambda: client.Client().create_bucket(f"bucket{next(number)}")


@pytest.fixture
def bucket(new_bucket: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket, and a user's cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return new_bucket()
