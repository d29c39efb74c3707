"""A file whose opening ends a process that decodes; it stands for a decoder that crashes."""

import multiprocessing
import os
from pathlib import PosixPath


class DeadlyPath(PosixPath):
    """Ends every process but the tests' own, when it is opened."""

    def __fspath__(self) -> str:
        if multiprocessing.parent_process() is not None:
            os._exit(11)
        return super().__fspath__()
