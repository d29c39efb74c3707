"""Retrieval and rank of features whose neighbours are known, and of runs without a label."""

import json

import numpy as np
import pytest

from awcl_jax.pretrain import runner as pretrain
from awcl_jax.pretrain.health import measures
from configs import simclr
from tests.helpers.frames import frame_record


@pytest.mark.quick
def test_retrieval_by_a_slow_loop():
    rng = np.random.default_rng(0)
    n, scans = 40, np.arange(40) // 3
    views = rng.normal(size=(2, n, 6)) + 0.9 * rng.normal(size=(14, 6))[scans] + rng.normal(size=(n, 6))
    view = scan = several = 0
    for i in range(n):
        cosines = [
            views[0, i] @ views[1, j] / np.linalg.norm(views[0, i]) / np.linalg.norm(views[1, j]) for j in range(n)
        ]
        view += int(np.argmax(cosines)) == i
        others = [j for j in range(n) if j != i]
        if any(scans[j] == scans[i] for j in others):
            several += 1
            scan += scans[max(others, key=lambda j: cosines[j])] == scans[i]
    found = measures(views.astype(np.float32), scans)
    assert found["retrieval/view"] == pytest.approx(view / n)
    assert found["retrieval/scan"] == pytest.approx(scan / several)
    assert several == 39  # the last scan has one frame
    assert 0.1 < found["retrieval/scan"] < found["retrieval/view"] < 1


@pytest.mark.quick
def test_ends_of_the_range():
    distinct = np.stack([np.eye(8, dtype=np.float32)] * 2)
    found = measures(distinct, np.arange(8))
    # Centred, the eight unit vectors span seven dimensions evenly.
    assert found == pytest.approx({"retrieval/view": 1, "effective_rank": 7}, rel=1e-4)
    collapsed = measures(np.ones((2, 8, 4), np.float32), np.arange(8) // 2)
    assert collapsed == pytest.approx({"retrieval/view": 0, "retrieval/scan": 0, "effective_rank": 1})


@pytest.mark.slow
def test_a_run_without_labels_is_judged(prepare_frames, tmp_path, capsys):
    unknown = {"anatomy_fine": -1, "anatomy_coarse": -1}

    def part(split, patients):
        return [frame_record(f"{split}{p}-{f}", f"{split}{p}", **unknown) for p in range(patients) for f in range(2)]

    config = simclr.get_config("tiny")
    config.data.path = str(prepare_frames(train=part("train", 16), val=part("val", 4), test=part("test", 2)))
    config.report.pictures = False
    config.train.eval_every = config.train.steps
    results = pretrain.run(config, tmp_path / "run")
    assert results["health"].keys() == {"untrained", "trained"}
    assert results["differences"] == {}
    assert [line.split()[0].strip(":") for line in results["verdict"]] == [
        "Loss" if results["verdict"][0].startswith("Loss") else "BAD",
        "Without" if results["verdict"][1].startswith("Without") else "BAD",
    ]
    printed = capsys.readouterr().out
    assert all(line in printed for line in results["verdict"])
    assert results["verdict"][0] in (tmp_path / "run" / "report.html").read_text()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (measured,) = [line for line in lines if "effective_rank" in line]
    assert measured == {"step": config.train.steps, **results["health"]["trained"]}
