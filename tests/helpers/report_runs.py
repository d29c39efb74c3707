"""Small run folders, with names that may be hostile."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from awcl_jax.config.fields import to_dict
from awcl_jax.config.pretraining import default_config
from awcl_jax.evaluate.neighbours import nearest_by_scan
from awcl_jax.evaluate.scores import Score, scores_as_json
from awcl_jax.report.embedding_map import MAP_FILE, FrameMap, Label, Thumbnails
from awcl_jax.train import run_folder
from awcl_jax.train.metrics import MetricsWriter

HOSTILE = (
    "</script><script>window.injected = 1</script>",
    "\"'><img src=x onerror='window.injected = 1'>",
    "two\nlines & &lt; {{ 7 * 7 }} \u2028 \\u003c",
)
PNG = cv2.imencode(".png", np.arange(64, dtype=np.uint8).reshape(8, 8))[1].tobytes()


def frames_of(n: int = 60, *, anatomy: str = "4CH", scan: str = "P1-S0") -> FrameMap:
    """Return a map of n frames of three anatomies and five scans, each with a thumbnail of another grey."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 4, n)
    scans = rng.integers(0, 5, n)
    features = (5 * np.eye(4, 6)[kinds] + rng.normal(size=(n, 6))).astype(np.float32)
    same, others = nearest_by_scan(features, scans, 5)
    sheet = np.repeat(np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16), 8, 0), 8, 1)
    webp = cv2.imencode(".webp", sheet, [cv2.IMWRITE_WEBP_QUALITY, 60])[1].tobytes()
    labels = {
        "anatomy": Label.of([(anatomy, "FLP", "BG", "")[kind] for kind in kinds]),
        "scan": Label.of([scan if s == 0 else f"P{s + 1}-S0" for s in scans]),
        "machine": Label.of(["Portable 3"] * n),
        "split": Label.of(["test" if i < n // 2 else "training" for i in range(n)]),
    }
    ids = np.array([f"F{i:03d}" for i in range(n)])
    places = features[:, :2] + features[:, 2:4]
    return FrameMap(ids, labels, places, same, others, Thumbnails(8, min(n, 256), (webp,)))


def make_run(
    folder: Path,
    *,
    config: ConfigDict | None = None,
    frames: FrameMap | str | None = "some",
    anatomy: str = "4CH",
    scan: str = "P1-S0",
    datasets: list[dict[str, Any]] | None = None,
) -> Path:
    """Make the folder of a finished run of 40 steps."""
    folder.mkdir(parents=True)
    config = default_config() if config is None else config
    run_folder.write_json(folder / run_folder.CONFIG_FILE, {"config": to_dict(config), "data": "0123456789abcdef"})
    with MetricsWriter(folder, start_step=0) as metrics:
        for step in (10, 20, 30, 40):
            spread = float("nan") if step == 30 else 0.5
            metrics.write(step, {"loss": 5 - step / 100, "collapsed_loss": 3.434, "spread": spread})
            metrics.write(step, {"batch/positives": 4, "batch/cross_scan": 0.75, "frames_per_second": 100 * step})
    score = Score("knn/accuracy", 0.5, 0.4, 0.6, frames=4, patients=2)
    counts = {"frames": 9, "labelled": 6, "scans": 3, "patients": 2}
    results = {
        "steps": 40,
        "frames": {"train": counts, "val": counts, "test": counts},
        "data": "0123456789abcdef",
        **({} if datasets is None else {"datasets": datasets}),
        "verdict": [f"BAD: {anatomy}"],
        "trained": scores_as_json([score, Score(f"knn/f1/{anatomy}", 0.5, 0.4, 0.6, frames=4, patients=2)]),
        "anatomies": [anatomy, "FLP", "BG"],
        "knn_confusion": [[2, 0, 1], [0, 0, 0], [0, 0, 1]],
        "batches": {
            "batches": 40,
            "anatomies": [anatomy, "FLP", "unlabelled"],
            "training_frames": [3, 3, 3],
            "drawn": [10, 20, 10],
        },
    }
    run_folder.write_json(folder / run_folder.RESULTS_FILE, results)
    (folder / "pairs.png").write_bytes(PNG)
    if frames == "some":
        frames = frames_of(anatomy=anatomy, scan=scan)
    if isinstance(frames, FrameMap):
        frames.save(folder / MAP_FILE)
    return folder
