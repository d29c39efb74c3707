"""Malformed files in numbers: maps, indexes, datasets, checkpoints, tables, taxonomies, exports."""

import itertools
import json
import shutil
import zipfile

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.sources import open_source
from awcl_jax.embed import table as feature_tables
from awcl_jax.embed.exported import read_export
from awcl_jax.ingest.own.labels import read_taxonomy, resolve_names
from awcl_jax.ingest.own.manifest import COLUMNS, read_manifest
from awcl_jax.report import payload
from awcl_jax.report.embedding_map import MAP_FILE, FrameMap
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.checkpoint import Checkpoints
from tests.helpers.examples import FEW, MANY
from tests.helpers.frames import frame_record
from tests.helpers.malformed import broken_bytes, broken_trees, files_in, refused_of, refuses, sampled
from tests.helpers.report_runs import make_run

TEXTS = st.text(st.characters(), max_size=20)


# Arrays --------------------------------------------------------------------------------------------------------------

ARRAYS = {
    "none": np.zeros(0),
    "no rows": np.zeros((0, 2), np.float32),
    "a number": np.array(3),
    "texts": np.array(["x", "y"]),
    "more axes": np.zeros((2, 3, 4), np.int32),
    "large": np.full(3, 2**40),
    "negative": np.full(3, -5, np.int32),
    "nan": np.full((60, 2), np.nan, np.float32),
    "truth": np.ones(60, bool),
    "complex": np.ones(60, complex),
    "dates": np.zeros(60, "datetime64[s]"),
    "bytes": np.full(60, b"x"),
    "records": np.zeros(60, [("a", "i4")]),
}


def broken_archives(path):
    """(kind, bytes) of an .npz with one array replaced or left out, its bytes broken, or of another make."""
    with np.load(path) as stored:
        columns = dict(stored.items())
    for name in columns:
        for kind, array in {**ARRAYS, "left out": None}.items():
            changed = columns | {name: array}
            np.savez(path, **{n: a for n, a in changed.items() if a is not None})
            yield f"{name}: {kind}", path.read_bytes()
    np.savez(path, **columns)
    content = path.read_bytes()
    yield from broken_bytes(content)
    np.save(path.with_suffix(".npy"), columns[name])
    yield "an array alone", path.with_suffix(".npy").read_bytes()
    path.with_suffix(".npy").unlink()
    for method in (99, zipfile.ZIP_LZMA):
        # The number of its method of compression, in the directory and before the data.
        at = content.rindex(b"PK\x01\x02") + 10
        yield f"compressed by {method}", content[:at] + method.to_bytes(2, "little") + content[at + 2 :]


def test_maps_of_frames(tmp_path):
    shutil.copy(make_run(tmp_path / "run") / MAP_FILE, tmp_path / MAP_FILE)

    def show(content):
        (tmp_path / "given.npz").write_bytes(content)
        json.dumps(payload.frame_map(FrameMap.load(tmp_path / "given.npz")), allow_nan=False)

    assert len(refused_of(broken_archives(tmp_path / MAP_FILE), show)) > 100


def test_a_cached_index_is_sound_or_made_anew(prepare_frames):
    path = prepare_frames(train=[frame_record("a", "p"), frame_record("b", "q")])
    wanted = ScanIndex.from_dataset(path)
    cases = list(sampled(broken_archives(path / "scan_index.npz"), 4))

    def read(content):
        (path / "scan_index.npz").write_bytes(content)
        index = ScanIndex.from_dataset(path)
        if index.fingerprint == wanted.fingerprint:
            return
        for name in ("scans", "patients", "machines", "fine", "coarse", "splits"):
            assert getattr(index, name).shape == (len(index),)

    assert refused_of(iter(cases), read) == set()  # there is always the dataset to read


def test_descriptions_of_a_dataset(prepare_frames, tmp_path):
    path = prepare_frames(train=[frame_record("a", "p")])

    def read(case):
        file, content = case
        before = (path / file).read_bytes()
        (path / file).write_bytes(content)
        (path / "scan_index.npz").unlink(missing_ok=True)
        try:
            ScanIndex.from_dataset(path)
        finally:
            (path / file).write_bytes(before)

    def cases():
        for file, every in (("features.json", 97), ("dataset_info.json", 23)):
            content = (path / file).read_bytes()
            trees = ((k, json.dumps(t).encode()) for k, t in sampled(broken_trees(json.loads(content)), every))
            for kind, broken in itertools.chain(trees, broken_bytes(content)):
                yield f"{file}: {kind}", (file, broken)
        for kind, broken in broken_bytes((path / "anatomy_fine.labels.txt").read_bytes()):
            yield f"labels: {kind}", ("anatomy_fine.labels.txt", broken)

    assert len(refused_of(cases(), read)) > 40


# Checkpoints ---------------------------------------------------------------------------------------------------------

STATE = {"params": {"w": jnp.arange(6.0).reshape(2, 3)}, "step": jnp.int32(3)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with one checkpoint."""
    workdir = tmp_path_factory.mktemp("checkpoint")
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(10, STATE, score=0.5)
    return workdir


def restore(workdir):
    """What is restored is what was saved; a damaged checkpoint is told."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        if checkpoints.latest_step is None:
            raise InputError("no checkpoint")
        _ = checkpoints.best_step
        found = checkpoints.restore(10, STATE)
        np.testing.assert_array_equal(found["params"]["w"], STATE["params"]["w"])
        assert found["step"] == 3


def restore_with(workdir, file, content):
    """The same with another file, or with none, in this place, which is put back."""
    before = (workdir / file).read_bytes()
    (workdir / file).unlink()
    if content is not None:
        (workdir / file).write_bytes(content)
    held = files_in(workdir)
    try:
        restore(workdir)
    finally:
        assert files_in(workdir) == held
        (workdir / file).write_bytes(before)


def test_checkpoints(checkpoint):
    restore(checkpoint)
    # Of Orbax's own tree `ocdbt.process_0` is not read again.
    files = [name for name in files_in(checkpoint) if "ocdbt.process" not in name]

    def cases():
        for name in files:
            yield f"{name}: deleted", (name, None)
            for kind, content in sampled(broken_bytes((checkpoint / name).read_bytes()), 6):
                yield f"{name}: {kind}", (name, content)

    assert len(refused_of(cases(), lambda case: restore_with(checkpoint, *case))) > 15


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("_CHECKPOINT_METADATA", "item_handlers", -1),
        ("_CHECKPOINT_METADATA", "custom_metadata", {"crc32": -1}),
        ("metrics/metrics", "score", "x"),
        ("metrics/metrics", "other", 1.0),
    ],
)
def test_checkpoints_that_ended_in_a_traceback_once(file, field, value, checkpoint):
    at = f"checkpoints/10/{file}"
    content = {field: value} if field == "other" else json.loads((checkpoint / at).read_text()) | {field: value}
    refused = refuses(lambda: restore_with(checkpoint, at, json.dumps(content).encode()))
    assert refused == (file == "_CHECKPOINT_METADATA")  # without a score, the state is as good
    assert refuses(lambda: restore_with(checkpoint, "checkpoints/10/metrics/metrics", b""))


def test_metadata_of_checkpoints(checkpoint):
    values = (None, -1, "x", [], {}, True, 1e308)

    def cases():
        for name in ("checkpoints/10/_CHECKPOINT_METADATA", "checkpoints/10/state/_METADATA", "metrics"):
            file = name if name != "metrics" else "checkpoints/10/metrics/metrics"
            tree = json.loads((checkpoint / file).read_text())
            for kind, broken in sampled(broken_trees(tree, values), 4):
                yield f"{name}: {kind}", (file, json.dumps(broken).encode())

    assert len(refused_of(cases(), lambda case: restore_with(checkpoint, *case))) > 8


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_any_byte_of_a_checkpoint(many, checkpoint):
    names = sorted(files_in(checkpoint))

    @settings(MANY if many else FEW, max_examples=300 if many else 25)
    @given(st.sampled_from(names), st.integers(0, 10_000), st.integers(1, 255))
    def flip(name, at, bits):
        content = bytearray((checkpoint / name).read_bytes())
        content[at % len(content)] ^= bits
        refuses(lambda: restore_with(checkpoint, name, bytes(content)))

    flip()


# Tables, taxonomies, exports -----------------------------------------------------------------------------------------

CELLS = (
    *("", " ", "x", "../x", "/etc/passwd", "\0", "\u2028", "a.png", "-1", "1e999", "nan", "0", "1.5", "9" * 400, "inf"),
    *("train", "TRAIN", "[]", "None", "x" * 300, "=1+1", "'", "é", "a;b"),
)
ROW = dict(zip(COLUMNS, ("a.png", "1", "p", "4CH", "train", "m", "a.png", "0.5", "1", "0 0 2 2"), strict=True))


def test_manifests(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")

    def read(content):
        (tmp_path / "given.csv").write_bytes(content)
        listing = read_manifest(tmp_path / "given.csv")
        if listing.faults or not listing.rows:
            raise InputError("; ".join(fault.rule for fault in listing.faults))

    def written(rows):
        return "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows).encode("utf-8", "surrogatepass")

    def cases():
        for column, cell in itertools.product(ROW, CELLS):
            yield f"{column} = {cell[:20]!r}", written([ROW, (ROW | {column: cell}).values()])
        for column in ROW:
            yield f"no {column}", written([[c for c in ROW if c != column], [v for c, v in ROW.items() if c != column]])
            yield f"twice {column}", written([[*ROW, column], [*ROW.values(), "x"]])
        yield from broken_bytes(written([ROW, ROW.values()]))

    assert len(refused_of(cases(), read)) > 80


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tables_of_any_form(many, tmp_path):
    columns = st.sampled_from([*COLUMNS, "id"]) | TEXTS
    kinds = st.sampled_from(
        (
            *(pa.string(), pa.int64(), pa.float32(), pa.bool_(), pa.binary(), pa.null(), pa.list_(pa.int8())),
            *(pa.struct([("a", pa.int8())]), pa.date32(), pa.decimal128(9, 2), pa.timestamp("ns", "UTC")),
            *(pa.dictionary(pa.int8(), pa.string()), pa.duration("s"), pa.map_(pa.string(), pa.int8())),
            *(pa.list_(pa.float32(), 2), pa.uint64(), pa.float16(), pa.large_string(), pa.time64("us")),
        )
    )
    out = tmp_path / "out"
    out.mkdir()

    @(MANY if many else FEW)
    @given(st.lists(st.tuples(columns, kinds), min_size=1, max_size=4), st.sampled_from((".parquet", ".npz")))
    @example([("path", pa.binary())], ".npz")
    @example([("path", pa.string()), ("features", pa.list_(pa.float32(), 2))], ".npz")
    @example([("path", pa.string()), ("../x", pa.string())], ".npz")
    def take(fields, suffix):
        names = [name.encode("utf-8", "replace").decode() for name, _ in fields]
        table = pa.table([pa.nulls(2, kind) for _, kind in fields], names=names)
        parquet.write_table(table, tmp_path / "given.parquet")
        refuses(lambda: read_manifest(tmp_path / "given.parquet"))
        shutil.rmtree(out)
        out.mkdir()

        def copy():
            labels = open_source(tmp_path / "given.parquet").labels
            feature_tables.write_table(out / f"out{suffix}", [labels], provenance={"a": "b"})

        if refuses(copy):
            assert list(out.iterdir()) == []
        else:
            assert [file.name for file in out.iterdir()] == [f"out{suffix}"]

    take()


def test_taxonomies(tmp_path):
    tree = {"planes": {"4CH": "heart", "ACP": "abdomen"}, "aliases": {"4C": "4CH"}, "unlabelled": ["other"]}

    def read(content):
        (tmp_path / "given.yaml").write_bytes(content)
        taxonomy, unlabelled = read_taxonomy(tmp_path / "given.yaml")
        resolve_names(["", *taxonomy.fine, *taxonomy.coarse], taxonomy, unlabelled)

    def cases():
        for kind, broken in sampled(broken_trees(tree), 2):
            yield kind, yaml.safe_dump(broken).encode()
        yield from broken_bytes(yaml.safe_dump(tree).encode())
        for text in ("a: &a [*a]", "<<: 1", "? [1]: 2", "- 1", "!!python/name:os", "1: 2", "%YAML 9", "a: b: c", "\t"):
            yield text, text.encode()
        # Lists of nine times the list before: a few hundred bytes that hold 9 ** 8 names.
        layers = "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi"))
        yield "bomb", f"a: &a [x]\n{layers}".encode()
        yield "bomb of planes", f"a: &a [x]\n{layers}planes: {{x: *i}}\n".encode()

    assert len(refused_of(cases(), read)) > 80


def test_taxonomies_in_toml(tmp_path):
    good = b'unlabelled = ["other"]\n[planes]\n4CH = "heart"\n[aliases]\n4C = "4CH"\n'

    def read(content):
        (tmp_path / "given.toml").write_bytes(content)
        read_taxonomy(tmp_path / "given.toml")

    assert len(refused_of(broken_bytes(good), read)) > 10


def test_descriptions_of_an_export(tmp_path):
    good = {
        "frames": {"size": 8, "mask_overlays": False},
        "encoder": {"arch": "resnet18", "width_factor": 0.25, "strides": "v1.5"},
        "input": {"size": 8, "mean": 0.2, "std": 0.2},
    }
    (tmp_path / "encoder.safetensors").write_bytes(b"none")

    def read(content):
        (tmp_path / "preprocessing.json").write_bytes(content)
        read_export(tmp_path)

    trees = ((kind, json.dumps(tree).encode()) for kind, tree in broken_trees(good))
    cases = list(itertools.chain(trees, broken_bytes(json.dumps(good).encode())))
    assert refused_of(iter(cases), read) == {kind for kind, _ in cases}  # the weights are none in any case
