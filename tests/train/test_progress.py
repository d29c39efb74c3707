"""What a run shows while it trains."""

import io
import re

import pytest

from awcl_jax.train.loop import Event
from awcl_jax.train.progress import Estimate, Progress, duration

pytestmark = pytest.mark.quick


def event(every, phase):
    return Event(every, lambda done, state: None, phase=phase)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_the_remaining_time_counts_steps_and_events():
    estimate = Estimate(start=0, steps=25, events=[event(10, "evaluating"), event(4, "saving")])
    assert estimate.remaining() is None
    for done in range(1, 11):
        estimate.step(done, 7.0 if done == 1 else 2.0)  # the first one warms up
    assert estimate.unknown == ["evaluating", "saving"]
    assert estimate.remaining() == 15 * 2.0
    estimate.event("evaluating", 5.0)
    # After 20 and 25.
    assert estimate.unknown == ["saving"]
    assert estimate.remaining() == 15 * 2.0 + 2 * 5.0
    estimate.event("saving", 1.0)
    estimate.event("saving", 3.0)
    # After 12, 16, 20, 24 and 25, each 3 s: the first one compiles.
    assert estimate.remaining() == 15 * 2.0 + 2 * 5.0 + 5 * 3.0
    estimate.step(25, 2.0)
    assert estimate.remaining() == 0


@pytest.mark.parametrize("every", [1, 4, 7, 25, 99])
def test_events_to_come_are_those_of_the_loop(every):
    one = event(every, "saving")
    for done in range(25):
        estimate = Estimate(start=done, steps=25, events=[one])
        assert estimate._coming(one) == sum(one.due(later, 25) for later in range(done + 1, 26))


def run(clock, to, *, steps=300, seconds=1.0, evaluating=20.0, shown=True):
    """A run of so many steps, with an evaluation after every 100; the clock is looked at once a second."""
    with Progress(start=0, steps=steps, events=[event(100, "evaluating")], shown=shown, to=to, clock=clock) as progress:
        progress._over.set()  # the thread's looks are made here
        for done in range(1, steps + 1):
            clock.now += seconds
            progress.step(done)
            progress.numbers(f"loss {5 - done / 100:.3f}")
            progress.refresh()
            if done % 100 == 0:
                progress.event("evaluating")
                for _ in range(int(evaluating)):
                    clock.now += 1
                    progress.refresh()
                progress.event_ended()
    return to.getvalue()


def test_a_file_gets_a_line_a_minute_and_two_estimates(clock):
    lines = run(clock, io.StringIO()).splitlines()
    assert lines[0] == "About 5 min for the remaining 290 of 300 steps (not counting evaluating)."
    # 200 s of steps, and two evaluations of 20 s.
    assert "About 4 min for the remaining 200 of 300 steps." in lines
    assert len([line for line in lines if line.startswith("About")]) == 2
    assert 5 <= len(lines) <= 9  # of 360 s
    assert "\r" not in "".join(lines)
    assert re.fullmatch(r"step \d+ of 300, training, loss \d\.\d{3}, \d+ (s|min) left", lines[1])


def test_a_long_evaluation_is_named_while_it_lasts(clock):
    lines = run(clock, io.StringIO(), evaluating=150.0).splitlines()
    assert any(re.match(r"step 100 of 300, evaluating \(\d+ s\), ", line) for line in lines)


def test_the_bar_moves_on_during_an_evaluation(clock):
    shown = run(clock, Terminal(), steps=100).split("\r")
    seconds = [int(found[1]) for text in shown if (found := re.search(r"evaluating \((\d+) s\)", text))]
    assert {1, 10, 20} <= set(seconds)


def test_the_bar_does_not_keep_the_name_of_an_evaluation_that_has_ended(clock):
    to = Terminal()
    with Progress(start=0, steps=4, events=[event(2, "evaluating")], to=to, clock=clock) as progress:
        progress._over.set()
        progress.event("evaluating")
        clock.now += 3
        progress.refresh()
        progress.event_ended()
        clock.now += 1
        progress.step(1)
    shown = [text for text in to.getvalue().split("\r") if text.strip()]
    assert shown[0].startswith("training:")
    assert any(text.startswith("evaluating (3 s):") for text in shown)
    assert shown[-1].startswith("training:")


def test_nothing_is_printed_by_other_processes(clock):
    assert run(clock, io.StringIO(), shown=False) == ""
    assert run(clock, Terminal(), shown=False) == ""


def test_a_run_of_seconds_has_no_estimate(clock):
    (line,) = run(clock, io.StringIO(), steps=5).splitlines()
    assert line == "step 5 of 5, loss 4.950, 5 s in all"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (89, "89 s"), (120, "2 min"), (5400, "1 h 30 min"), (90_000, "25 h 0 min"), (200_000, "2 days 8 h")],
)
def test_durations_have_one_or_two_units(seconds, text):
    assert duration(seconds) == text
