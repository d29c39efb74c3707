"""Fixtures that several tests share: the real data, small folders in a publisher's layout, small datasets."""

import gc
import itertools
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib
import pytest

from awcl_jax.ingest.phantom import Phantom
from awcl_jax.ingest.prepare import prepare
from awcl_jax.ingest.public.fetal_planes_db import FetalPlanesDb
from tests.helpers.frames import FrameSet, Planes
from tests.helpers.lock import LOCK

# Before any other call of JAX: eight devices out of one CPU, so that every test of a step can spread it.
jax.config.update("jax_num_cpu_devices", 8)

REAL_DATA = Path(os.environ.get("AWCL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_configure() -> None:
    """The tests compile more than they compute, and are a third faster with a compiler that does less."""
    gc.disable()  # until all is imported
    # Not with --xla_cpu_use_fusion_emitters=false, though that takes 0.6 of the time: at this level programs of views
    # are then wrong (jaxlib 0.10.2), and at level 1 a row's bits depend on its batch, as they do not for users.
    jax.config.update("jax_disable_most_optimizations", True)
    # A shape that fits by accident is a fault.
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # The commands that tests start: the bits that users get, at LLVM's level 1 in three quarters of the time. XLA ends
    # a process whose flags it does not know, as another version may.
    if f"jaxlib=={jaxlib.__version__}" in LOCK.read_text().split():
        flags = ("--xla_backend_optimization_level=1", "--xla_cpu_parallel_codegen_split_count=1")
        given = os.environ.get("XLA_FLAGS", "").split()
        os.environ["XLA_FLAGS"] = " ".join([*given, *(flag for flag in flags if flag not in given)])


@pytest.fixture
def optimised() -> Iterator[None]:
    """What the test compiles is compiled as for users: for bounds that hold for their numbers."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A slow test is not quick, though its file is, and one of a release is not slow."""
    later = {"quick": ("slow", "release"), "slow": ("release",), "peers": ("release",)}.get(config.option.markexpr, ())
    if later:
        slow = [item for item in items if any(map(item.get_closest_marker, later))]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


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


@pytest.fixture
def planes(tmp_path: Path) -> Planes:
    """An empty folder to be filled in the layout of FETAL_PLANES_DB."""
    return Planes(tmp_path / "source")


@pytest.fixture
def prepare_frames(tmp_path: Path) -> Callable[..., Path]:
    """Prepare a dataset of records, split by split, and give its folder."""

    def prepare(folder: str = "frames", *, masks: bool = False, **splits: Sequence[dict[str, Any]]) -> Path:
        builder = FrameSet(splits=splits, masks=masks, data_dir=tmp_path / folder, file_format="array_record")
        builder.download_and_prepare()
        return Path(builder.data_dir)

    return prepare


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
