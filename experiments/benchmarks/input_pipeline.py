"""Images a second of a view's stream, beside decoding in a loop and beside webdataset with a torch DataLoader.

    python experiments/benchmarks/input_pipeline.py VIEW [--peer PYTHON] [--json]

All three read the same shards and make 256 x 256 RGB pictures, uint8, in batches of 64, by the same kernel. "Decode" is
one loop that has the bytes in memory, and calls Pillow as webdataset's side does; with 2 workers, two such loops in two
processes. "Own decode" is the same loop around what the stream decodes and scales with, which is its limit. The stream
is bytes, as it goes to devices, and mirrors nothing, as the others do not; "mirrored" is one that mirrors half of the
pictures as training does, "float32" one that takes no `put` besides. PYTHON is the interpreter of an environment with
webdataset and torch. Every figure is taken in turn, `ROUNDS` times and every other time in reverse, and the median of
the rounds' ratios is printed, with their quartiles. The wait of a step is the time that a loop with a pretended step of
250 ms spends in `next`. For an idle machine; the load is printed.
"""

import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from functools import partial

IMAGES, BATCH, SIDE, ROUNDS = 1920, 64, 256, 9

PEER = """
import io, sys, time
import numpy as np, torch, webdataset
from PIL import Image
shards, workers, images, batch, side = sys.argv[1].split(","), *map(int, sys.argv[2:])
def square(data):
    image = Image.open(io.BytesIO(data))
    image.draft(None, (side, side))
    image = image.convert("RGB")
    edge = min(image.size)
    left, top = (image.width - edge) / 2, (image.height - edge) / 2
    box = left, top, left + edge, top + edge
    return torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.BICUBIC, box=box)))
def first(sample):
    return square(sample.get("jpg") or sample.get("webp")), sample["txt"].decode()
data = webdataset.WebDataset(shards, shardshuffle=len(shards), resampled=False, seed=0).shuffle(1000).map(first)
loader = torch.utils.data.DataLoader(data.repeat(), batch_size=batch, num_workers=workers)
batches = iter(loader)
for _ in range(4):
    next(batches)
start = time.perf_counter()
for _ in range(images // batch):
    next(batches)
print(images / (time.perf_counter() - start), flush=True)
import os; os._exit(0)
"""


def contents(view, count):
    """The bytes of the first rows of a view that are spread over it."""
    from jdiff.data.shards import Shards
    from jdiff.data.view import View

    opened = View(view)
    shards = Shards(opened.shards)
    return [shards.read(opened.row(n * (len(opened) // count))) for n in range(count)]


def decode_loop(data):
    """Seconds to decode, by Pillow alone, into squares."""
    import numpy as np
    from PIL import Image

    start = time.perf_counter()
    for content in data:
        image = Image.open(io.BytesIO(content))
        image.draft(None, (SIDE, SIDE))
        image = image.convert("RGB")
        edge = min(image.size)
        left, top = (image.width - edge) / 2, (image.height - edge) / 2
        box = left, top, left + edge, top + edge
        np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))
    return time.perf_counter() - start


def own_decode_loop(data):
    """Seconds to decode into squares by the stream's own function."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # as in a worker
    from jdiff.data.buckets import crop

    start = time.perf_counter()
    for content in data:
        crop(content, (SIDE, SIDE), (0.5, 0.5), False)
    return time.perf_counter() - start


def decoding(loop, view, workers):
    """Images a second of `workers` loops at once."""
    data = contents(view, IMAGES)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(loop, [data[:64]] * workers)
        seconds = pool.map(loop, [data[place::workers] for place in range(workers)], chunksize=1)
    return IMAGES / max(seconds)


def streaming(view, workers, step_seconds=0.0, flip=False, put=lambda batch: batch):
    """Images a second, and the seconds a step that were spent waiting; with `put` None of float32."""
    from jdiff.data.buckets import Buckets
    from jdiff.data.view_stream import ViewStream

    buckets = Buckets(size=SIDE, step=SIDE)
    stream = ViewStream([(view, 1)], buckets=buckets, batch_size=BATCH, seed=0, flip=flip)
    batches = stream.batches(0, workers=workers, put=put)  # bytes, ahead of use, as in training
    for _ in range(4):
        next(batches)
    waited, start = 0.0, time.perf_counter()
    for _ in range(IMAGES // BATCH):
        before = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - before
        time.sleep(step_seconds)
    return IMAGES / (time.perf_counter() - start), waited / (IMAGES // BATCH)


def peer(python, view, workers):
    """Images a second of webdataset and torch."""
    from jdiff.data.view import View

    shards = ",".join(name for name, _ in View(view).shards)
    words = [python, "-c", PEER, shards, *map(str, (workers, IMAGES, BATCH, SIDE))]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def main():
    words = [word for word in sys.argv[1:] if word != "--json"]
    python = words[words.index("--peer") + 1] if "--peer" in words else None
    view = words[0]
    rows = []
    for workers in (1, 2):
        measures = {
            "decode": partial(decoding, decode_loop, view, workers),
            "own decode": partial(decoding, own_decode_loop, view, workers),
            "stream": lambda workers=workers: streaming(view, workers)[0],
            "stream, mirrored": lambda workers=workers: streaming(view, workers, flip=True)[0],
            "stream, float32": lambda workers=workers: streaming(view, workers, flip=True, put=None)[0],
        }
        if python:
            measures["webdataset"] = partial(peer, python, view, workers)
        rounds = []
        for number in range(ROUNDS):
            order = list(measures)[:: -1 if number % 2 else 1]
            rounds.append({name: measures[name]() for name in order})
        row = {"workers": workers} | {name: round(statistics.median(r[name] for r in rounds), 1) for name in measures}
        for name in measures:
            if not name.startswith("stream"):
                low, middle, high = statistics.quantiles((r["stream"] / r[name] for r in rounds), n=4)
                row[f"stream / {name}"] = f"{middle:.3f} ({low:.3f} to {high:.3f})"
        row["wait of a 250 ms step, ms"] = round(1000 * streaming(view, workers, 0.25)[1], 1)
        row["load"] = round(os.getloadavg()[0], 1)
        rows.append(row)
    if "--json" in sys.argv:
        print(json.dumps(rows))
        return
    for row in rows:
        print("   ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
