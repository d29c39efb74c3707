"""Files that do harm if opened naively: one ends the process, others run a stranger's code."""

import multiprocessing
import os
from pathlib import Path, PosixPath


class DeadlyPath(PosixPath):
    """A file that ends every process except the tests' own when opened, like a decoder that crashes."""

    def __fspath__(self) -> str:
        if multiprocessing.parent_process() is not None:
            os._exit(11)
        return super().__fspath__()


class Deed:
    """Pickled as a call that makes a file, which shows that the pickle was run."""

    def __init__(self, marker: Path) -> None:
        """The file."""
        self.marker = marker

    def __reduce__(self) -> tuple:
        """As pickle asks for it."""
        return open, (str(self.marker), "w")
