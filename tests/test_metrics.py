"""Monitors against slow loops and known limits; the metrics file against runs that die and resume."""

import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from awcl_jax import metrics
from awcl_jax.errors import InputError


@jax.jit
def monitors(z):
    return [f(z) for f in (metrics.spread, metrics.alignment, metrics.uniformity, metrics.effective_rank)]


def unit_rows(*shape, seed=0):
    z = np.random.default_rng(seed).normal(size=shape)
    return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)


def test_alignment_and_uniformity_are_those_of_slow_loops():
    z = unit_rows(2, 9, 5).astype(np.float64)
    apart = [sum((z[0, i, j] - z[1, i, j]) ** 2 for j in range(5)) for i in range(9)]
    logs = []
    for view in z:
        pairs = [math.exp(-2 * sum((view[i] - view[j]) ** 2)) for i in range(9) for j in range(i)]
        logs.append(math.log(sum(pairs) / len(pairs)))
    _, alignment, uniformity, _ = monitors(z.astype(np.float32))
    assert alignment == pytest.approx(sum(apart) / 9, rel=1e-5)
    assert uniformity == pytest.approx(sum(logs) / 2, rel=1e-5)


def test_effective_rank_is_the_entropy_of_the_singular_values():
    rows = unit_rows(2, 30, 7).reshape(60, 7).astype(np.float64) * np.geomspace(1, 0.05, 7)
    squares = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    p = squares / squares.sum()
    rank = monitors(rows.reshape(2, 30, 7).astype(np.float32))[-1]
    assert rank == pytest.approx(math.exp(-sum(p * np.log(p))), rel=1e-4)


def test_monitors_of_a_uniform_encoder():
    d, b = 16, 1500
    spread, alignment, _, rank = monitors(unit_rows(2, b, d, seed=1))
    assert spread == pytest.approx(1, abs=0.01)
    # Independent views: E||x - y||^2 = 2. All d dimensions are in use.
    assert alignment == pytest.approx(2, abs=0.05)
    assert rank == pytest.approx(d, rel=0.01)


def test_monitors_of_a_collapsed_encoder():
    # Rounding differs from row to row, and may not look like sixteen dimensions in use.
    rounding = 1e-7 * np.random.default_rng(2).normal(size=(2, 50, 16))
    np.testing.assert_allclose(monitors((unit_rows(1, 1, 16) + rounding).astype(np.float32)), [0, 0, 0, 1], atol=1e-5)


def test_monitors_by_hand():
    # Two frames on the axes, the views of each equal: b = 2 rows (1, 0) and (0, 1), 2 apart squared.
    z = jnp.asarray([[[1.0, 0.0], [0.0, 1.0]]] * 2)
    # Each dimension is 0 or 1: deviation 1/2, times sqrt 2. All variance lies along (1, -1). log exp(-2 * 2) = -4.
    expected = [math.sqrt(2) / 2, 0, -4, 1]
    np.testing.assert_allclose(monitors(z), expected, atol=1e-5)


def test_collapsed_loss_is_the_contrastive_loss_of_one_point():
    # Eight equal rows, anchor 0 with positives 1 and 2: -1/2 sum_a log(exp(1/t) / (7 exp(1/t))) = log 7.
    t = 0.1
    softmax = math.exp(1 / t) / sum(math.exp(1 / t) for _ in range(7))
    assert metrics.collapsed_loss(7) == pytest.approx(-sum(math.log(softmax) for _ in range(2)) / 2)


def written_steps(workdir):
    return [record["step"] for record in metrics.read_metrics(workdir / "metrics.jsonl")]


def test_lines_are_strict_json_and_come_back(tmp_path):
    with metrics.MetricsWriter(tmp_path / "run", start_step=0) as writer:
        writer.write(1, {"loss": jnp.float32(2.5), "knn/accuracy": np.float64(0.25)})
        writer.write(2, {"loss": float("nan"), "high": math.inf, "low": -math.inf})
        path = tmp_path / "run" / "metrics.jsonl"
        assert len(path.read_text().splitlines()) == 2, "flushed line by line, before closing"

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines[0] == {"step": 1, "loss": 2.5, "knn/accuracy": 0.25}
    first, second = metrics.read_metrics(path)
    assert first == {"step": 1, "loss": 2.5, "knn/accuracy": 0.25}
    assert math.isnan(second["loss"])
    assert (second["high"], second["low"], second["step"]) == (math.inf, -math.inf, 2)


def test_a_resumed_run_writes_no_step_twice(tmp_path):
    with metrics.MetricsWriter(tmp_path, start_step=0) as writer:
        for step in range(1, 8):
            writer.write(step, {"loss": step})
    with metrics.MetricsWriter(tmp_path, start_step=4) as writer:
        assert written_steps(tmp_path) == [1, 2, 3, 4]
        writer.write(5, {"loss": 50})
    assert written_steps(tmp_path) == [1, 2, 3, 4, 5]
    assert metrics.read_metrics(tmp_path / "metrics.jsonl")[-1]["loss"] == 50
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "loss": 1.0}', "\0\0\0"])
def test_a_line_that_a_death_tore_is_dropped(tmp_path, torn):
    with metrics.MetricsWriter(tmp_path, start_step=0) as writer:
        writer.write(1, {"loss": 1})
        writer.write(2, {"loss": 2})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + torn)
    assert written_steps(tmp_path) == [1, 2]
    with metrics.MetricsWriter(tmp_path, start_step=9) as writer:
        writer.write(10, {"loss": 3})
    assert written_steps(tmp_path) == [1, 2, 10]


def test_files_that_are_no_metrics_are_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(InputError, match="There are no metrics at"):
        metrics.read_metrics(path)
    for line in ("hello", "[1, 2]", '{"loss": 1}', '{"step": 1, "loss": [1]}'):
        path.write_text('{"step": 1}\n' + line + "\n")
        with pytest.raises(InputError, match=r"Line 2 of .* is no JSON object"):
            metrics.MetricsWriter(tmp_path, start_step=0)
        assert path.read_text().endswith(line + "\n"), "a foreign file stays as it was"


def board_events(folder):
    """Events of a TensorBoard folder in the order written; each record is length, checksum, bytes, checksum."""
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            length, record = int.from_bytes(data[:8], "little"), data[12:]
            assert masked_crc32c(record[:length]) == int.from_bytes(record[length : length + 4], "little")
            yield Event.FromString(record[:length])
            data = record[length + 4 :]


def test_tensorboard_has_scalars_and_images_and_hides_what_was_cut(tmp_path):
    with metrics.MetricsWriter(tmp_path, start_step=0) as writer:
        writer.write(7, {"loss": 1.5})
        writer.image(7, "pairs", np.zeros((4, 6), np.uint8))
        writer.image(7, "map", np.zeros((4, 6, 3), np.uint8))
    events = list(board_events(tmp_path / "tensorboard"))
    values = {value.tag: (event.step, value) for event in events for value in event.summary.value}
    assert set(values) == {"loss", "pairs", "map"}
    assert values["loss"][0] == 7
    assert values["loss"][1].simple_value == 1.5
    assert (values["map"][1].image.height, values["map"][1].image.width) == (4, 6)
    with metrics.MetricsWriter(tmp_path, start_step=4) as writer:
        writer.write(5, {"loss": 2.5})
    # TensorBoard drops earlier events whose step is at or above that of a session's start.
    restarts = [e.step for e in board_events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert restarts[-1] == 5


def test_tensorboard_shows_the_numbers_of_the_file_and_the_pictures_of_the_folder(tmp_path):
    shade = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(shade).save(tmp_path / "pairs.png")
    with metrics.MetricsWriter(tmp_path, start_step=0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 1 / step, "val/knn/accuracy": step / 10})
    metrics.show_pictures(tmp_path, 3)
    values = [(event.step, value) for event in board_events(tmp_path / "tensorboard") for value in event.summary.value]
    scalars = {(step, value.tag): value.simple_value for step, value in values if value.HasField("simple_value")}
    lines = metrics.read_metrics(tmp_path / "metrics.jsonl")
    expected = {(line["step"], name): line[name] for line in lines for name in line.keys() - {"step"}}
    assert scalars == pytest.approx(expected)
    ((step, shown),) = [(step, value) for step, value in values if value.HasField("image")]
    assert (step, shown.tag) == (3, "pairs")
    np.testing.assert_array_equal(Image.open(io.BytesIO(shown.image.encoded_image_string)), shade)
