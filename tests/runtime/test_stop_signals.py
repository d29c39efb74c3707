"""How a run notices a request to stop."""

import signal
import threading

import pytest

from awcl_jax.runtime import stop_signals
from awcl_jax.runtime.errors import RunStopped

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def handlers():
    """Restore the handlers of the tests' own process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(*signals: int, error: BaseException | None = None) -> None:
    """Stand for a run that gets these signals after a step, and ends with this error if any."""
    with stop_signals.noticed() as should_stop:
        assert not should_stop(1)
        for number in signals:
            signal.raise_signal(number)
        assert should_stop(2)
        if error is not None:
            raise error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noticed_and_does_no_more(number, capfd):
    with pytest.raises(RunStopped, match="step 2"):
        run(number, error=RunStopped("step 2"))
    assert ("ctrl-C again exits at once" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_without_a_signal_the_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_signals.noticed() as should_stop:
        assert signal.getsignal(signal.SIGTERM) is not before[0]
        assert not should_stop(1)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_later_sigterms_are_ignored_until_the_process_has_left():
    interrupt = signal.getsignal(signal.SIGINT)
    with pytest.raises(RunStopped, match="step 3"):
        run(signal.SIGTERM, signal.SIGTERM, signal.SIGTERM, error=RunStopped("step 3"))
    signal.raise_signal(signal.SIGTERM)  # would end this process
    assert signal.getsignal(signal.SIGINT) is interrupt


def test_a_signal_after_the_last_step_stops_when_all_is_saved():
    with pytest.raises(RunStopped, match="after the last step"):
        run(signal.SIGTERM)


def test_a_second_ctrl_c_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(signal.SIGINT, signal.SIGINT)
    assert caught.type is KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_notice_nothing():
    answers = []

    def run() -> None:
        with stop_signals.noticed() as should_stop:
            answers.append((should_stop(1), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [(False, signal.getsignal(signal.SIGTERM))]
