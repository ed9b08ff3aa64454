"""Arrays in files without a name, which are in memory only while a part of them is read or written."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np


class Spill:
    """Zeros [shape] in the folder `beside` (the system's for temporary files without it).

    Reading a part copies it. The file is gone with the process, however that ends.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, beside: Path | None = None):
        self.shape, self._dtype = shape, np.dtype(dtype)
        self._file = tempfile.TemporaryFile(dir=beside)  # noqa: SIM115, it lives as long as this
        self._file.truncate(max(int(np.prod(shape)) * self._dtype.itemsize, 1))

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
