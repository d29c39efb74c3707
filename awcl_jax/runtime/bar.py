"""Progress bars by a clock that nobody sets."""

import time
from typing import Any

from tqdm import tqdm


class Bar(tqdm):
    """A bar of tqdm by the steady clock.

    tqdm measures by the wall clock: a computer that sleeps, or sets its clock, would add hours to the times shown, or
    subtract them, and a bar would not move until a clock that was set back has caught up.

    Args:
      *args, **kwargs: of tqdm.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._time = time.monotonic  # tqdm has no argument for it
        if not self.disable:
            self.start_t = self.last_print_t = self._time()
