"""What strangers give is read and never run: files planted in each place that is read from, and what reads them."""

import ast
import contextlib
import json
import pickle
import shutil
import sys
import zipfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from awcl_jax.config.fields import to_dict
from awcl_jax.config.pretraining import default_config
from awcl_jax.data import scans
from awcl_jax.data.images import read_manifest
from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.stored import open_dataset
from awcl_jax.embed import command as embed
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.public.download import unpack
from awcl_jax.report import command as report
from awcl_jax.report.embedding_map import MAP_FILE
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.bad_steps import BadSteps
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.run_folder import open_run
from tests.helpers.deadly import Deed
from tests.helpers.frames import frame_record
from tests.helpers.report_runs import make_run
from tests.helpers.syntax import FILES, tree_of


@pytest.fixture
def marker(tmp_path):
    """A file that is made by what must not be run, and is not there in the end."""
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


@pytest.fixture
def frames(prepare_frames):
    """A small dataset."""
    return prepare_frames(train=[frame_record("a", "p"), frame_record("b", "q")], test=[frame_record("c", "r")])


def refused(main, arguments, capsys) -> str:
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def planted(path: Path, marker: Path, *, like: dict) -> Path:
    """An .npz in which one array after the other is of objects whose pickle makes the marker."""
    np.savez(path, **{name: np.array([Deed(marker)], dtype=object) for name in like})
    with np.load(path, allow_pickle=True) as stored:
        _ = stored[next(iter(like))]
    assert marker.exists()  # it would be run
    marker.unlink()
    return path


# The code ------------------------------------------------------------------------------------------------------------


def called() -> list[tuple[str, str, ast.Call]]:
    """(file, function, call) of every call in the package."""
    return [
        (file.name, ast.unparse(node.func), node)
        for file in FILES
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Call)
    ]


def test_the_code_calls_nothing_that_runs_what_it_reads():
    calls = called()
    loads = [node for _, name, node in calls if name in ("np.load", "np.lib.format.read_array")]
    assert loads
    for node in loads:
        assert "allow_pickle=False" in ast.unparse(node)
    forbidden = {
        *("eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "torch.load", "joblib.load"),
        *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "tarfile.open", "shutil.unpack_archive", "marshal.loads"),
    }
    # A program that a run of this user kept is machine code; its reader checks owner, mode and digest first.
    assert [(file, name) for file, name, _ in calls if name in forbidden] == [("kept_programs.py", "pickle.loads")]
    assert not [(file, name) for file, name, _ in calls if name.endswith((".extractall", "read_pickle"))]
    assert {file for file, name, _ in calls if name.endswith("builder_from_directory")} == {"stored.py"}
    assert {file for file, name, _ in calls if name.endswith(".extract")} == {"download.py"}


def test_who_knows_pickle():
    """The inert reader of weights, and the reader of this user's own compiled programs."""
    knowing = {
        file.name
        for file in FILES
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if name.split(".")[0] in ("pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib")
    }
    assert knowing == {"torch_zip.py", "kept_programs.py"}


# Arrays --------------------------------------------------------------------------------------------------------------


def test_a_cached_index_with_objects_is_made_anew(frames, marker):
    wanted = ScanIndex.from_dataset(frames)
    with np.load(frames / "scan_index.npz") as stored:
        names = stored.files
    planted(frames / "scan_index.npz", marker, like=dict.fromkeys(names))
    # The key is sound, what it belongs to is not.
    fields = {name: np.array([Deed(marker)], dtype=object) for name in names}
    np.savez(frames / "scan_index.npz", **(fields | {"key": np.array(scans.dataset_key(frames))}))
    assert ScanIndex.from_dataset(frames).fingerprint == wanted.fingerprint
    with np.load(frames / "scan_index.npz", allow_pickle=False) as stored:
        assert stored["frame_ids"].tolist() == ["a", "b", "c"]


def test_a_map_of_frames_with_objects_is_refused(tmp_path, marker, capsys):
    run = make_run(tmp_path / "run")
    with np.load(run / MAP_FILE) as stored:
        names = stored.files
    planted(run / MAP_FILE, marker, like=dict.fromkeys(names))
    assert "is not a map of frames (Object arrays cannot be loaded" in refused(report.main, [run], capsys)
    assert not (run / "report.html").exists()


def test_features_are_never_read_back(tmp_path, marker, capsys):
    open_run(tmp_path / "run", config=to_dict(default_config()), fingerprint="f00d")
    source = planted(tmp_path / "features.npz", marker, like={"id": 0, "features": 0})
    said = refused(embed.main, [tmp_path / "run", source, f"--out={tmp_path / 'out.npz'}"], capsys)
    assert "has no checkpoint" in said or "Frames are read from folders" in said
    assert not (tmp_path / "out.npz").exists()


def test_a_table_with_pickled_columns_is_a_table(tmp_path, marker):
    # As pyarrow before 14.0.1 ran it, when it opened the file.
    table = pa.table({"path": ["a.png"]})
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    metadata[b"ARROW:extension:metadata"] = pickle.dumps(Deed(marker))
    table = table.cast(pa.schema([table.schema.field("path").with_metadata(metadata)]))
    parquet.write_table(table, tmp_path / "manifest.parquet")
    assert read_manifest(tmp_path / "manifest.parquet")["path"].to_pylist() == ["a.png"]


# Datasets ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def evil(tmp_path, marker, monkeypatch):
    """A module, where Python finds it, that makes the marker when it is imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "evil_features.py").write_text(
        f"import tensorflow_datasets as tfds\nopen({str(marker)!r}, 'w')\nclass Evil(tfds.features.Text): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield "evil_features.Evil"
    sys.modules.pop("evil_features", None)


def with_feature(folder: Path, feature: dict) -> Path:
    """The dataset, with one feature more."""
    content = json.loads((folder / "features.json").read_text())
    content["featuresDict"]["features"]["more"] = feature
    (folder / "features.json").write_text(json.dumps(content))
    return folder


_TEXT = "tensorflow_datasets.core.features.text_feature.Text"
_DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
_SEQUENCE = "tensorflow_datasets.core.features.sequence_feature.Sequence"


@pytest.mark.parametrize(
    "feature",
    [
        {"pythonClassName": "EVIL", "text": {}},
        {"python_class_name": "EVIL", "text": {}},
        {"pythonClassName": "EVIL", "jsonFeature": {"json": "{}"}},
        {"pythonClassName": _DICT, "featuresDict": {"features": {"x": {"pythonClassName": "EVIL", "text": {}}}}},
        {"pythonClassName": _DICT, "jsonFeature": {"json": '{"x": {"type": "EVIL", "content": {}}}'}},
        {"pythonClassName": _SEQUENCE, "sequence": {"feature": {"pythonClassName": "EVIL", "text": {}}}},
        {"pythonClassName": _SEQUENCE, "jsonFeature": {"json": '{"feature": {"type": "EVIL", "content": {}}}'}},
        {"pythonClassName": _TEXT, "jsonFeature": {"json": '{"type": "EVIL"}'}},
    ],
    ids=lambda feature: json.dumps(feature)[-40:],
)
def test_a_dataset_imports_no_class_that_it_names(feature, frames, evil, marker, tmp_path, capsys):
    spelt = json.loads(json.dumps(feature).replace("EVIL", evil))
    with_feature(frames, spelt)
    index = ScanIndex(frames, *[np.zeros(0, np.int32)] * 8, *[()] * 6)
    for read in (ScanIndex.from_dataset, open_dataset, lambda _: FrameReader(index).has_masks):
        with pytest.raises(InputError, match=r"which was not run|cannot be opened") as caught:
            read(frames)
        assert "\n" not in str(caught.value)
    assert not marker.exists()
    open_run(tmp_path / "run", config=to_dict(default_config()), fingerprint="f00d")
    refused(embed.main, [tmp_path / "run", frames, f"--out={tmp_path / 'out.npz'}"], capsys)
    assert "evil_features" not in sys.modules


def test_tfds_alone_would_import_it(frames, evil, tmp_path):
    with_feature(frames, {"pythonClassName": evil, "text": {}})
    tfds.builder_from_directory(frames)
    (tmp_path / "marker").unlink()  # else there was nothing to guard against


@pytest.mark.parametrize("form", ["legacy", "nested"])
def test_a_file_of_features_of_an_older_form_is_refused(form, frames, evil, marker):
    content = {"type": evil, "content": {}}
    if form == "nested":
        content = {"type": _DICT, "content": {"x": content}}
    (frames / "features.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="cannot be opened"):
        ScanIndex.from_dataset(frames)


def test_the_module_that_a_dataset_names_is_not_imported(frames, evil, marker):
    content = json.loads((frames / "dataset_info.json").read_text())
    content["moduleName"] = evil.partition(".")[0]
    (frames / "dataset_info.json").write_text(json.dumps(content))
    assert len(ScanIndex.from_dataset(frames)) == 3
    assert "evil_features" not in sys.modules


def test_a_picture_as_large_as_memory_is_refused(prepare_frames):
    # The header of a PNG with 60,000 x 60,000 pixels and its checksum, before the pixels of a small one.
    record = frame_record("a", "p", image=np.zeros((4, 4), np.uint8))
    header = b"IHDR" + (60_000).to_bytes(4) * 2 + record["image"][24:29]
    sized = record["image"][:12] + header + zlib.crc32(header).to_bytes(4) + record["image"][33:]
    index = ScanIndex.from_dataset(prepare_frames(train=[record | {"image": sized}]))
    with pytest.raises(InputError, match="60000 x 60000 pixels") as caught:
        FrameReader(index, 8).read(np.array([0]))
    assert "\n" not in str(caught.value)


# Texts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:io.open", "!!python/object/new:io.open", "!!python/name:os.system", "!!python/module:os"],
)
def test_a_taxonomy_builds_no_objects(tag, tmp_path, marker, capsys):
    source = tmp_path / "frames.csv"
    source.write_text("path,scan_id\na.png,1\n")
    taxonomy = tmp_path / "taxonomy.yaml"
    taxonomy.write_text(f"planes:\n  a: heart\naliases: {tag} [{marker}, w]\n")
    arguments = ["manifest", f"--source={source}", f"--taxonomy={taxonomy}", f"--out={tmp_path / 'out'}"]
    assert "is not a TOML or YAML file" in refused(ingest.main, arguments, capsys)


CODE = "__import__('pathlib').Path({marker!r}).touch()"


@pytest.mark.parametrize("name", ["config.json", "results.json", "metrics.jsonl", "bad_steps.jsonl"])
@pytest.mark.parametrize("kind", ["code", "text", "pickle"])
def test_the_files_of_a_run_are_only_read(name, kind, tmp_path, marker, capsys):
    run = make_run(tmp_path / "run", frames=None)
    code = CODE.format(marker=str(marker))
    if kind == "pickle":
        (run / name).write_bytes(pickle.dumps(Deed(marker)) + b"\n")
    else:
        (run / name).write_text((code if kind == "code" else json.dumps({"config": code, "step": code})) + "\n")
    if name == "bad_steps.jsonl":
        with pytest.raises(InputError) as caught:
            BadSteps(run, start_step=5)
        assert "\n" not in str(caught.value)
        return
    if name == "results.json" and kind == "text":
        report.main([str(run)])  # fields that the page does not know are left aside
        return
    refused(report.main, [run], capsys)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("file", ["_CHECKPOINT_METADATA", "state/_METADATA", "state/_sharding", "state/manifest.ocdbt"])
@pytest.mark.parametrize("kind", ["class", "pickle"])
def test_a_checkpoint_names_no_class_that_is_imported(file, kind, tmp_path, evil, marker):
    state = {"w": jnp.arange(3.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    at = tmp_path / "checkpoints" / "1" / file
    if kind == "pickle":
        at.write_bytes(pickle.dumps(Deed(marker)))
    else:
        # Orbax writes `_sharding` in other settings than ours, and may read it.
        old = at.read_bytes() if at.is_file() else b'{"dw==": {"sharding_type": "SingleDeviceSharding"}}'
        for handler in (b"orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler",):
            old = old.replace(handler, evil.encode())
        at.write_bytes(old.replace(b"jax.Array", evil.encode()).replace(b"SingleDeviceSharding", evil.encode()))
    # It is damaged, or as written.
    with Checkpoints(tmp_path, read_only=True) as checkpoints, contextlib.suppress(InputError):
        np.testing.assert_array_equal(checkpoints.restore(1, state)["w"], state["w"])
    assert "evil_features" not in sys.modules


@pytest.mark.parametrize("name", ["encoder.jax", "encoder.safetensors"])
def test_an_export_is_no_pickle(name, tmp_path, marker, capsys):
    described = {
        "frames": {"size": 8, "mask_overlays": False},
        "encoder": {"arch": "resnet18", "width_factor": 0.25, "strides": "v1.5"},
        "input": {"size": 8, "mean": 0.2, "std": 0.2},
    }
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "preprocessing.json").write_text(json.dumps(described))
    (tmp_path / "export" / name).write_bytes(pickle.dumps(Deed(marker)))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    arguments = [tmp_path / "export", tmp_path / "pictures", f"--out={tmp_path / 'out.npz'}"]
    assert name in refused(embed.main, arguments, capsys)


# Archives ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../marker", "a/../../marker", "/{tmp}/marker", "..\\..\\marker", "link/marker"])
def test_an_archive_writes_into_its_folder_alone(name, tmp_path, marker):
    archive, folder = tmp_path / "a.zip", tmp_path / "out"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("good", "good")
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16  # a symbolic link to the folder above
        out.writestr(link, "..")
        out.writestr(name.format(tmp=tmp_path.as_posix().lstrip("/")), "evil")
    with contextlib.suppress(InputError, OSError):  # some are refused, others stay inside
        unpack(archive, folder)
    inside = [file for file in tmp_path.rglob("*") if file != archive and not file.is_relative_to(folder)]
    assert inside == []
    assert not any(file.is_symlink() for file in tmp_path.rglob("*"))
    shutil.rmtree(folder, ignore_errors=True)
