"""The metrics file, with runs that die and resume."""

import io
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from awcl_jax.runtime.errors import InputError
from awcl_jax.train import metrics

pytestmark = pytest.mark.quick


def written_steps(workdir):
    return [record["step"] for record in metrics.read_metrics(workdir / "metrics.jsonl")]


def test_lines_are_strict_json_and_come_back(tmp_path):
    with metrics.MetricsWriter(tmp_path / "run", start_step=0) as writer:
        writer.write(1, {"loss": jnp.float32(2.5), "knn/accuracy": np.float64(0.25)})
        writer.write(2, {"loss": float("nan"), "high": math.inf, "low": -math.inf})
        path = tmp_path / "run" / "metrics.jsonl"
        assert len(path.read_text().splitlines()) == 2, "flushed line by line, before closing"

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

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


def test_files_that_are_not_metrics_are_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(InputError, match=r"not found\. Pass the metrics.jsonl"):
        metrics.read_metrics(path)
    for line in ("hello", "[1, 2]", '{"loss": 1}', '{"step": 1, "loss": [1]}'):
        path.write_text('{"step": 1}\n' + line + "\n")
        with pytest.raises(InputError, match=r"Line 2 of .* is not a JSON object"):
            metrics.MetricsWriter(tmp_path, start_step=0)
        assert path.read_text().endswith(line + "\n"), "a foreign file stays as it was"


def board_events(folder):
    """Yield a TensorBoard folder's events in the order written; each record is length, checksum, bytes, checksum."""
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            length, record = int.from_bytes(data[:8], "little"), data[12:]
            assert masked_crc32c(record[:length]) == int.from_bytes(record[length : length + 4], "little")
            yield Event.FromString(record[:length])
            data = record[length + 4 :]


def test_tensorboard_has_scalars_and_hides_cut_steps(tmp_path):
    with metrics.MetricsWriter(tmp_path, start_step=0) as writer:
        writer.write(7, {"loss": 1.5})
    events = list(board_events(tmp_path / "tensorboard"))
    values = {value.tag: (event.step, value) for event in events for value in event.summary.value}
    assert set(values) == {"loss"}
    assert values["loss"][0] == 7
    assert values["loss"][1].simple_value == 1.5
    with metrics.MetricsWriter(tmp_path, start_step=4) as writer:
        writer.write(5, {"loss": 2.5})
    # TensorBoard drops earlier events whose step is at or above that of a session's start.
    restarts = [e.step for e in board_events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert restarts[-1] == 5


def test_tensorboard_shows_the_files_numbers_and_pictures(tmp_path):
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
    assert (step, shown.tag) == (3, "pictures/pairs")
    np.testing.assert_array_equal(Image.open(io.BytesIO(shown.image.encoded_image_string)), shade)
