"""The training loop."""

import numpy as np
import pytest

from awcl_jax.data.pipeline import Batch
from awcl_jax.errors import InputError, Interrupted
from awcl_jax.loop import Event, train


def run(*, steps=10, start=0, log_every=4, losses=None, norms=None, every=(), happened=None, written=None, stop=None):
    """Count upwards; gives (final state, what happened, the metrics written)."""
    happened, written = [] if happened is None else happened, [] if written is None else written
    losses, norms = losses or {}, norms or {}

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
        log_every=log_every,
        write=lambda done, values: written.append((done, values)),
        events=[
            Event(n, lambda done, state, name=name: happened.append((name, done, state)), before_leaving=name == "save")
            for name, n in every
        ],
        asked_to_stop=lambda done: done == stop,
        show_progress=False,
    )
    return state, happened, written


def test_events_run_when_due_and_after_the_last_step_in_their_order():
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
def test_the_run_stops_at_the_step_that_is_not_finite_and_no_event_sees_it(bad, where, step):
    # Finite again at the next step: one bad step is enough.
    saved, name = [], {"losses": "loss", "norms": "gradient norm"}[where]
    with pytest.raises(InputError, match=rf"The {name} became {bad} at step {step}: stopped") as caught:
        run(log_every=100, every=(("save", 2),), happened=saved, **{where: {step: bad}})
    assert "\n" not in str(caught.value)
    assert [done for _, done, _ in saved] == [done for done in (2, 4, 6, 8) if done < step]


@pytest.mark.parametrize(
    ("stop", "last"),
    [
        (5, [("save", 5, 5)]),
        (6, [("evaluate", 6, 6), ("save", 6, 6)]),
        (10, [("evaluate", 10, 10), ("save", 10, 10)]),
    ],
)
def test_a_run_that_is_asked_to_stop_saves_what_it_has_and_writes_no_line_more(stop, last):
    happened, written = [], []
    with pytest.raises(Interrupted, match=f"stopped after step {stop} of 10, which is saved"):
        run(every=(("evaluate", 3), ("save", 99)), happened=happened, written=written, stop=stop)
    assert [event for event in happened if event[1] == stop] == last
    assert [done for done, _ in written] == [done for done in (4, 8, 10) if done <= stop]
