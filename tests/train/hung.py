"""`python -m tests.train.hung VERB ...`: the command, of which process 1 hangs between two steps, with a watchdog that
would end it much later than those of the others end them."""

import sys
import time

import jax

from jdiff import cli
from jdiff.train import loop
from jdiff.train.trainer import Trainer
from jdiff.train.watchdog import Watchdog


def main(words):
    batches = Trainer.batches

    def stuck_here(self, source, start, *rest):
        for step, batch in enumerate(batches(self, source, start, *rest), start + 1):
            if step == 6 and jax.process_index() == 1:
                time.sleep(1000)
            yield batch

    late = lambda seconds: Watchdog(seconds + 600 * (jax.process_index() == 1))
    Trainer.batches, loop.Watchdog = stuck_here, late
    cli.main(words)


if __name__ == "__main__":
    main(sys.argv[1:])
