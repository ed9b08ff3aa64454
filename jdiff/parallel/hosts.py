"""Processes that train together."""

import contextlib
import os
import sys
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SCHEDULERS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # what srun and mpirun have started, not what is booked


def join() -> None:
    """Joins the processes of a run where the environment says that there are several; to be called before JAX is used.

    By hand: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. JAX itself reads
    what Slurm and Open MPI say, and with JAX_NUM_PROCESSES=auto whatever else it knows, a Cloud TPU pod say. Raises
    ValueError where what is given by hand does not fit together.
    """
    given = {name: os.environ[name] for name in _BY_HAND if os.environ.get(name)}
    if given.get("JAX_NUM_PROCESSES") == "auto" or (
        not given and any(int(os.environ.get(name, "1")) > 1 for name in _SCHEDULERS)
    ):
        jax.distributed.initialize()
    elif given:
        if len(given) < len(_BY_HAND):
            missing = ", ".join(name for name in _BY_HAND if name not in given)
            raise ValueError(f"several processes need {', '.join(_BY_HAND)}; missing: {missing}")
        address, count, number = given.values()
        if not (count.isdigit() and number.isdigit() and int(number) < int(count)):
            raise ValueError(f"JAX_PROCESS_ID must be in 0..JAX_NUM_PROCESSES - 1; got {number} of {count}")
        jax.distributed.initialize(address, int(count), int(number))


@contextlib.contextmanager
def own_output() -> Iterator[None]:
    """Inside, what is written to standard output goes to standard error: Gloo, which joins processes on CPUs, writes a
    line for each group of them."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def wait_for_all(where: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)
