"""Warnings of a run that hangs."""

import time

import pytest

from awcl_jax.runtime.watchdog import Watch, watching

pytestmark = pytest.mark.quick


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(clock):
    """Return a watch in step 11, after ten steps that waited 0.5 s for data and took 8 s."""
    watch = Watch(patience=20, at_first=100, clock=clock)
    for step in range(1, 11):
        watch.on_phase("waiting for data", step)
        clock.now += 0.5
        watch.on_phase("waiting for the devices", step)
        clock.now += 8
    watch.on_phase("waiting for data", 11)
    return watch


def test_a_usual_duration_is_not_reported(watch, clock):
    clock.now += 0.5
    watch.on_phase("waiting for the devices", 11)
    clock.now += 79  # a little less than ten times the median
    assert watch.complaint() is None


def test_the_line_names_where_a_step_hangs_and_for_how_long(watch, clock):
    clock.now += 19
    assert watch.complaint() is None, "within the patience"
    clock.now += 2
    assert watch.complaint() == "step 11 has been waiting for data for 21 s (0.5 s is usual)"
    watch.on_phase("waiting for the devices", 11)
    clock.now += 81
    assert watch.complaint() == "step 11 has been waiting for the devices for 81 s (8 s is usual)"


def test_the_line_repeats_when_it_took_twice_as_long(watch, clock):
    said = []
    for _ in range(200):
        clock.now += 1
        said += [watch.complaint()]
    assert [i + 1 for i, line in enumerate(said) if line] == [20, 40, 80, 160]


def test_a_first_time_may_take_longer(watch, clock):
    watch.on_phase("saving", 11)
    clock.now += 99
    assert watch.complaint() is None
    clock.now += 1
    assert watch.complaint() == "step 11 has been saving for 100 s (first time)"


def test_one_long_time_does_not_hide_the_next(watch, clock):
    clock.now += 1000
    watch.on_phase("waiting for the devices", 11)
    watch.on_phase("waiting for data", 12)
    clock.now += 21
    assert "0.5 s is usual" in watch.complaint()


def test_nothing_is_reported_before_anything_begins(clock):
    clock.now = 1e6
    assert Watch(clock=clock).complaint() is None


def test_a_thread_warns_and_ends_with_the_block(capsys):
    with watching(Watch(at_first=0.0), every=0.01) as on_phase:
        on_phase("waiting for data", 3)
        said = ""
        while "warning" not in said:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert "step 3 has been waiting for data for 0 s (first time)" in said
    capsys.readouterr()
    time.sleep(0.1)
    assert capsys.readouterr().err == ""
