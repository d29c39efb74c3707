"""Files that do harm when they are opened as they ask to be: one ends the process, others run a stranger's code."""

import multiprocessing
import os
from pathlib import Path, PosixPath


class DeadlyPath(PosixPath):
    """Ends every process but the tests' own, when it is opened; it stands for a decoder that crashes."""

    def __fspath__(self) -> str:
        if multiprocessing.parent_process() is not None:
            os._exit(11)
        return super().__fspath__()


class Deed:
    """Pickled as a call that makes a file, by which one sees that what was pickled was run."""

    def __init__(self, marker: Path) -> None:
        """The file."""
        self.marker = marker

    def __reduce__(self) -> tuple:
        """As pickle asks for it."""
        return open, (str(self.marker), "w")
