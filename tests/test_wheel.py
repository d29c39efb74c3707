"""The package as a wheel, alone in a fresh environment and with each extra by itself, away from the clone."""

import os
import re
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from pathlib import Path

import pytest

from tests.helpers.lock import LOCK

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]

# What each extra is for: a program that ends well with it, and not without it.
EXTRAS = {
    "export": "import onnx",
    "gcs": """
        from awcl_jax.runtime import bucket
        from awcl_jax.runtime.errors import InputError
        os.environ |= {"STORAGE_EMULATOR_HOST": "http://localhost:9", "NO_GCE_CHECK": "true"}
        try:
            with bucket._reaching("gs://b/runs", "read"):
                bucket._client()
        except InputError as error:
            sys.exit(str(error))
    """,
    "nifti": """
        import nibabel, numpy
        from awcl_jax.ingest.public import camus
        nibabel.save(nibabel.Nifti1Image(numpy.zeros((4, 4, 1), numpy.uint8), numpy.eye(4)), "a.nii.gz")
        assert nibabel.load("a.nii.gz").shape == (4, 4, 1)
    """,
    "dicom": """
        import gdcm, openjpeg, pydicom, pylibjpeg
        import awcl_jax.ingest.own.dicom
    """,
    "video": """
        import av
        import awcl_jax.ingest.own.videos
    """,
}


def run(*command: object, cwd: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed; a network that cannot be reached skips the test."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "XLA", "JAX"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=settings | (environment or {}),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if re.search("Temporary failure in name resolution|Network is unreachable|NewConnectionError", done.stderr):
        pytest.skip("packages cannot be downloaded here")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this clone."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", ROOT, cwd=folder)
    (file,) = folder.glob("awcl_jax-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment with the wheel and what it needs, without any extra."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", LOCK, wheel, cwd=folder)
    return folder


def site_packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", vars={"base": str(environment)}))


def test_a_wheel_holds_configurations_and_pages_and_nothing_beside_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"awcl_jax"}
    assert {"awcl_jax/configs/fine.py", "awcl_jax/report/page/page.css"} <= set(names)
    shipped = {f"awcl_jax/configs/{file.name}" for file in (ROOT / "configs").glob("*.py")}
    assert shipped == {name for name in names if name.startswith("awcl_jax/configs/")}


def test_the_main_command_runs_away_from_the_clone(installed, tmp_path):
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    awcl = installed / "bin" / "awcl"
    printed = run(awcl, "main", "--config=fine:tiny", "--workdir=first", cwd=tmp_path, environment=cache)
    assert "| kNN accuracy" in printed
    assert (tmp_path / "first" / "report.html").stat().st_size > 50_000
    # What the documentation lists of an installation without extras, but for what they are for.
    exported = run(awcl, "export", "first", "--out=out", "--formats=safetensors,jax", cwd=tmp_path, environment=cache)
    assert "encoder.jax" in exported
    assert "usage: awcl COMMAND" in run(awcl, cwd=tmp_path)
    for command in ("ingest", "embed", "report", "reproduce"):
        assert f"awcl_jax.{command}" in run(awcl, command, "--help", cwd=tmp_path)


@pytest.mark.release
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_what_it_is_for(extra, installed, wheel, tmp_path):
    program = "import os, sys\n" + textwrap.dedent(EXTRAS[extra])
    without = subprocess.run(
        [installed / "bin" / "python", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert without.returncode != 0, "nothing is missing without it"
    # Beside what is installed already, which an environment of its own reads through a path file.
    own = tmp_path / "environment"
    run(sys.executable, "-m", "venv", own, cwd=tmp_path)
    (site_packages(own) / "installed.pth").write_text(f"{site_packages(installed)}\n")
    wanted = f"awcl_jax[{extra}] @ {wheel.as_uri()}"
    run(own / "bin" / "python", "-m", "pip", "install", "--quiet", "-c", LOCK, wanted, cwd=tmp_path)
    run(own / "bin" / "python", "-c", program, cwd=tmp_path)
