"""`python -m tests.train.watched NOTES VERB ...`: the command, noting in a file of each process which examples updates
got, and the bits of the state at each save and restore, brought together from all processes."""

import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jdiff import cli
from jdiff.train.checkpoint import Checkpoints
from jdiff.train.trainer import Trainer


def bits(state):
    """Of what each array holds, whatever device holds it."""
    mesh = jax.tree.leaves(state)[0].sharding.mesh
    whole = jax.jit(lambda state: state, out_shardings=NamedSharding(mesh, PartitionSpec()))(state)
    arrays = [np.asarray(leaf.addressable_shards[0].data) for leaf in jax.tree.leaves(whole)]
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in arrays)).hexdigest()


def rows(batch):
    """What this process has of a batch: by place in it, the number of the example and the bits of its image."""
    images = {shard.device: np.asarray(shard.data) for shard in batch["image"].addressable_shards}
    found = {}
    for shard in batch["index"].addressable_shards:
        for place, (index, image) in enumerate(zip(np.asarray(shard.data), images[shard.device], strict=True)):
            found[(shard.index[0].start or 0) + place] = [int(index), hashlib.sha256(image.tobytes()).hexdigest()]
    return found


def main(notes, words):
    batches, save, newest = Trainer.batches, Checkpoints.save, Checkpoints.newest

    def note(**values):
        with Path(f"{notes}.{jax.process_index()}").open("a") as file:
            file.write(json.dumps(values) + "\n")

    def noted_batches(self, source, start, *rest):
        for step, batch in enumerate(batches(self, source, start, *rest), start + 1):
            note(step=step, rows=rows(batch))
            yield batch

    def noted_save(self, step, state, *rest):
        note(saved=step, bits=bits(state))
        save(self, step, state, *rest)

    def noted_newest(self, abstract, passed):
        found = newest(self, abstract, passed)
        if found:
            note(restored=found[0], bits=bits(found[1]))
        return found

    Trainer.batches, Checkpoints.save, Checkpoints.newest = noted_batches, noted_save, noted_newest
    cli.main(words)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
