"""How a run notices a request to stop."""

import signal
import threading

import pytest

from awcl_jax.runtime import stop_signals

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noticed_and_does_no_more(number, capfd):
    before = signal.getsignal(number)
    with stop_signals.noticed() as should_stop:
        assert not should_stop(1)
        signal.raise_signal(number)
        assert should_stop(2)
    assert signal.getsignal(number) is before
    assert ("ctrl-C again exits at once" in capfd.readouterr().err) == (number == signal.SIGINT)


def test_a_second_ctrl_c_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with stop_signals.noticed():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
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
