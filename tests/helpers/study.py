"""Runs of a study that train nothing, and leave what finished runs leave."""

import json

import pytest

from awcl_jax.config.fields import to_dict
from awcl_jax.downstream import runner as downstream
from awcl_jax.pretrain import runner as pretrain
from awcl_jax.train import checkpoint, run_folder


def fake_runs(monkeypatch: pytest.MonkeyPatch, *, dies_at: str | None = None, data: str = "f0") -> list[str]:
    """Replace both kinds of run, and return the list in which the names of those that are taken appear.

    Args:
      monkeypatch: pytest's.
      dies_at: name of a run that is interrupted, before it has results.
      data: fingerprint of what the runs see.
    """
    taken = []

    def run(config, workdir):
        name = f"{workdir.parent.name}/{workdir.name}"
        run_folder.open_run(workdir, config=to_dict(config), fingerprint=data)
        (workdir / checkpoint.FOLDER / "1").mkdir(parents=True, exist_ok=True)
        if name == dies_at:
            raise KeyboardInterrupt
        taken.append(name)
        print("said by the run")
        scores = {"knn/macro_f1": {"value": 0.5}, "probe/macro_f1": {"value": 0.5}}
        content = {"test": {}, "trained": scores, "untrained": scores, "encoder": str(workdir)}
        frames = [{"frame": str(n), "patient": f"p{n}", "label": "ab"[n % 2], "prediction": "a"} for n in range(4)]
        run_folder.write_frames(workdir / run_folder.FRAMES_FILE, frames)
        (workdir / run_folder.RESULTS_FILE).write_text(json.dumps(content))

    monkeypatch.setattr(pretrain, "run", run)
    monkeypatch.setattr(downstream, "run", run)
    return taken
