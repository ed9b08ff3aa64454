"""Indexes shards one by one and slowly, to be killed: OUT WORKERS SHARDS..."""

import sys
import time
from pathlib import Path

from jdiff.data import index

if __name__ == "__main__":
    workers, out = int(sys.argv[2]), Path(sys.argv[1])
    index.build(sys.argv[3:], out, workers=workers, progress=lambda *_: time.sleep(0.1))
