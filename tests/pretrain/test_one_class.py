"""A dataset whose frames all show one anatomy, as those of one plane do: what runs on it, and what is said."""

import pytest

from awcl_jax.pretrain import runner as pretrain
from awcl_jax.runtime.errors import InputError
from configs import coarse, fine, moco, scan, simclr
from tests.helpers.frames import frame_record


def one_class(prepare_frames, frames=2, fine=0, others=0):
    """Scans of a patient each, all of one plane; some of the patients in training show another."""

    def part(split, patients, other=0):
        return [
            frame_record(f"{split}{p}-{f}", f"{split}{p}", anatomy_fine=fine + (p < other), anatomy_coarse=0)
            for p in range(patients)
            for f in range(frames)
        ]

    return prepare_frames(train=part("train", 16, others), val=part("val", 2), test=part("test", 2))


def tiny(path, method):
    """Of the shapes that other tests have, so that nothing new is compiled."""
    config = method.get_config("tiny")
    config.data.path = str(path)
    config.report.pictures = False
    config.train.eval_every = config.train.checkpoint_every = config.train.steps // 2
    return config


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(fine, marks=pytest.mark.slow),
        *(pytest.param(method, marks=pytest.mark.release) for method in (simclr, scan, coarse, moco)),
    ],
)
def test_every_method_runs_to_its_end_and_scores_nothing(method, prepare_frames, tmp_path, capsys):
    config = tiny(one_class(prepare_frames), method)
    results = pretrain.run(config, tmp_path / "run")
    said = capsys.readouterr().out
    assert results["pixels"] == results["untrained"] == results["trained"] == {}
    assert "labelled training frames show 'abdomen', so nothing is scored" in said
    assert ("pulls all of them together" in said) == (method in (fine, coarse))
    steps = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert steps == [config.train.steps // 2, config.train.steps]


def test_scans_of_one_frame_each_are_refused_before_the_first_step(prepare_frames):
    with pytest.raises(InputError, match=r"16 training scans has one frame.*simclr"):
        pretrain.set_up(tiny(one_class(prepare_frames, frames=1), scan))


def test_one_class_needs_no_frames_to_be_scored_on(prepare_frames):
    unknown = {"anatomy_fine": -1, "anatomy_coarse": -1}
    labelled = [frame_record(f"a{n}", f"p{n}") for n in range(16)]
    path = prepare_frames(
        train=labelled, val=[frame_record("b", "q", **unknown)], test=[frame_record("c", "r", **unknown)]
    )
    assert "'femur'" in pretrain.set_up(tiny(path, simclr)).evaluation.unscored


def test_two_classes_are_scored(prepare_frames):
    assert not pretrain.set_up(tiny(one_class(prepare_frames, others=8), simclr)).evaluation.unscored
