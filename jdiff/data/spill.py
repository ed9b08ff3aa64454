"""Arrays in files without a name, which are in memory only while a part of them is read or written."""

import errno
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


class Spill:
    """Zeros [shape] in the folder `beside` (the system's for temporary files without it).

    Reading a part copies it. The file is gone with the process, however that ends. Raises OSError where it has no room:
    writing to a mapping of a full disk would end the process without a word.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, beside: Path | None = None):
        self.shape, self._dtype = shape, np.dtype(dtype)
        size = max(math.prod(shape) * self._dtype.itemsize, 1)
        folder = beside or Path(tempfile.gettempdir())
        free = shutil.disk_usage(folder).free
        if size > free:
            raise OSError(errno.ENOSPC, f"no room for {size:,} bytes of temporary data, {free:,} are free", str(folder))
        self._file = tempfile.TemporaryFile(dir=beside)  # noqa: SIM115, it lives as long as this
        self._file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # and nobody else takes it
            os.posix_fallocate(self._file.fileno(), 0, size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: Any) -> np.ndarray:
        return np.array(self._mapped()[part])

    def __setitem__(self, part: Any, values: np.ndarray) -> None:
        self._mapped()[part] = values

    def _mapped(self) -> np.ndarray:
        # A mapping of its own each time: pages that were read count as the process's own until it ends.
        if not np.prod(self.shape):
            return np.zeros(self.shape, self._dtype)
        return np.memmap(self._file, self._dtype, "r+", shape=self.shape)
