"""The training loop."""

import numpy as np
import pytest

from awcl_jax.data.pipeline import Batch
from awcl_jax.runtime.errors import InputError, RunStopped
from awcl_jax.train.loop import BadStepLimit, Event, Hooks, train

pytestmark = pytest.mark.quick


def run(
    *,
    steps=10,
    start=0,
    log_every=4,
    losses=None,
    norms=None,
    every=(),
    happened=None,
    written=None,
    noted=None,
    begun=None,
    stop=None,
    bad_steps=1,
    bad_in_a_row=0,
    **more,
):
    """Count upwards; gives (final state, what happened, the metrics written)."""
    happened, written = [] if happened is None else happened, [] if written is None else written
    losses, norms, begun = losses or {}, norms or {}, [] if begun is None else begun

    def step(state, arrays):
        done = int(arrays["number"]) + 1
        return state + 1, {"loss": np.float32(losses.get(done, done)), "gradient_norm": np.float32(norms.get(done, 1))}

    state = train(
        start,
        step,
        (Batch(i, {"number": np.array(i)}, {"anatomies": 2.0 * i}) for i in range(start, steps)),
        place=lambda arrays: arrays,
        start=start,
        steps=steps,
        batch_size=8,
        hooks=Hooks(
            log_every=log_every,
            write=lambda done, values: written.append((done, values)),
            events=[
                Event(
                    n,
                    lambda done, state, name=name: happened.append((name, done, state)),
                    name == "save",
                    f"{name[:-1]}ing",
                )
                for name, n in every
            ],
            should_stop=lambda done: done == stop,
            on_phase=lambda phase, step: begun.append((phase, step)),
            show_progress=False,
        ),
        bad_steps=BadStepLimit(
            bad_steps, in_a_row=bad_in_a_row, note=lambda done, values: noted.append((done, values))
        ),
        **more,
    )
    return state, happened, written


def test_events_run_in_order_when_due_and_after_the_last_step():
    state, happened, _ = run(every=(("evaluate", 3), ("save", 6)))
    assert state == 10
    assert happened == [
        *[("evaluate", 3, 3), ("evaluate", 6, 6), ("save", 6, 6)],
        *[("evaluate", 9, 9), ("evaluate", 10, 10), ("save", 10, 10)],
    ]


def test_events_of_a_resumed_run_are_those_still_to_come():
    _, happened, _ = run(start=6, every=(("evaluate", 3),))
    assert happened == [("evaluate", 9, 9), ("evaluate", 10, 10)]


def test_an_event_longer_than_the_run_comes_once_at_its_end():
    assert run(every=(("save", 99),))[1] == [("save", 10, 10)]


def test_steps_are_taken_one_by_one_where_that_is_asked_for(monkeypatch):
    taken = []
    monkeypatch.setattr("jax.block_until_ready", lambda values: taken.append(float(values["loss"])))
    run(steps=3)
    assert taken == []
    begun = []
    run(steps=3, log_every=3, begun=begun, one_by_one=True)
    assert taken == [1, 2, 3]
    assert begun[:4] == [
        *[("waiting for data", 1), ("starting a step", 1), ("waiting for the devices", 1), ("waiting for data", 2)]
    ]


def test_a_finished_run_does_nothing_more():
    assert run(start=10, every=(("save", 1),)) == (10, [], [])


def test_metrics_are_written_at_log_every_and_at_the_end():
    _, _, written = run(log_every=4, every=(("evaluate", 3),))
    # The loss is the number of steps taken; the composition is twice the batch's step, one less.
    assert [(done, values["loss"], values["batch/anatomies"]) for done, values in written] == [
        (4, 4.0, 6.0),
        (8, 8.0, 14.0),
        (10, 10.0, 18.0),
    ]
    for _, values in written:
        assert values["frames_per_second"] > 0
        assert 0 <= values["data_wait_share"] <= 1
        assert all(type(value) is float for value in values.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["losses", "norms"])
@pytest.mark.parametrize("step", [1, 3, 5, 10])
def test_a_bad_step_is_noted_before_any_event_and_ends_the_run(bad, where, step):
    # Finite again at the next step: where the limit is 1, one bad step is enough.
    happened, noted, name = [], [], {"losses": "loss", "norms": "gradient norm"}[where]
    with pytest.raises(InputError, match=rf"The {name} became {bad} at step {step}, the last of 1 such") as caught:
        run(log_every=100, every=(("save", 2),), happened=happened, noted=noted, **{where: {step: bad}})
    assert "\n" not in str(caught.value)
    assert [done for _, done, _ in happened] == [done for done in (2, 4, 6, 8) if done < step]
    assert [done for done, _ in noted] == [step]


@pytest.mark.parametrize(
    ("bad", "before", "limit", "ends"),
    [
        ((2, 3, 5, 6), 0, 3, None),
        ((2, 3, 4, 6), 0, 3, 4),
        ((1, 2), 1, 3, 2),  # the last step of the start before was one, too
        ((1, 3, 4), 2, 3, 1),
        ((2, 3), 2, 3, None),
        ((8, 9, 10), 0, 3, 10),
    ],
)
def test_so_many_bad_steps_in_a_row_end_the_run(bad, before, limit, ends):
    noted, losses = [], dict.fromkeys(bad, np.nan)
    settings = {"losses": losses, "bad_steps": limit, "bad_in_a_row": before, "noted": noted, "log_every": 4}
    if ends is None:
        run(**settings)
    else:
        with pytest.raises(InputError, match=f"at step {ends}, the last of {limit} such steps in a row"):
            run(**settings)
    assert [done for done, _ in noted] == [step for step in bad if ends is None or step <= ends]
    assert all(np.isnan(values["loss"]) and values["gradient_norm"] == 1 for _, values in noted)


@pytest.mark.parametrize(
    ("stop", "last"),
    [
        (5, [("save", 5, 5)]),
        (6, [("evaluate", 6, 6), ("save", 6, 6)]),
        (10, [("evaluate", 10, 10), ("save", 10, 10)]),
    ],
)
def test_a_run_asked_to_stop_saves_and_writes_no_further_line(stop, last):
    happened, written = [], []
    with pytest.raises(RunStopped, match=rf"stopped after step {stop} of 10 \(saved\)"):
        run(every=(("evaluate", 3), ("save", 99)), happened=happened, written=written, stop=stop)
    assert [event for event in happened if event[1] == stop] == last
    assert [done for done, _ in written] == [done for done in (4, 8, 10) if done <= stop]


def test_each_phase_is_reported_with_its_step():
    begun = []
    run(steps=3, log_every=2, every=(("evaluate", 2),), begun=begun)
    waits, starts, fetches = "waiting for data", "starting a step", "waiting for the devices"
    assert begun == [
        *[(waits, 1), (starts, 1)],
        *[(waits, 2), (starts, 2), (fetches, 2), ("evaluating", 2)],
        *[(waits, 3), (starts, 3), (fetches, 3), ("evaluating", 3), (waits, 4)],
    ]
