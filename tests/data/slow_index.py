"""Indexes shards one by one and slowly, to be killed: OUT SHARDS..."""

import sys
import time
from pathlib import Path

from jdiff.data import index

if __name__ == "__main__":
    index.build(sys.argv[2:], Path(sys.argv[1]), progress=lambda *_: time.sleep(0.1))
