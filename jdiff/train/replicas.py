"""Whether the devices of a run still hold and compute the same: what a device that fails in silence gives away.

Copies of one array on several devices must be equal to the bit, and one update made twice from the same state must give
the same state. Both are compared by a digest of what each device holds.
"""

import collections
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jdiff.train.digest import device_digests


def disagreeing(state: Any, twin: Any = None) -> list[str]:
    """The devices whose copies are not those of the others or, with `twin`, whose parts of two states differ; all that
    share a copy where there is no majority. To be called by every process, each hears of all devices."""
    mesh_devices = sorted(jax.tree.leaves(state)[0].sharding.device_set, key=lambda device: device.id)
    mine = _gathered(state, mesh_devices)
    odd: set[int] = set()
    groups = collections.defaultdict(list)
    for number, device in enumerate(mesh_devices):
        groups[_share(state, device)].append(number)
    for members in groups.values():
        counts = collections.Counter(int(mine[number]) for number in members)
        value, most = counts.most_common(1)[0]
        if len(counts) > 1:
            majority = 2 * most > len(members)
            odd |= {number for number in members if not majority or mine[number] != value}
    if twin is not None:
        odd |= set(np.flatnonzero(_gathered(twin, mesh_devices) != mine).tolist())
    return [f"{mesh_devices[number]} of process {mesh_devices[number].process_index}" for number in sorted(odd)]


def _share(state: Any, device: Any) -> tuple:
    """Which part of each array the device holds: equal for devices that hold the same."""
    return tuple(str(leaf.sharding.devices_indices_map(leaf.shape).get(device)) for leaf in jax.tree.leaves(state))


def _gathered(state: Any, devices: list[Any]) -> np.ndarray:
    """The digest of what each of `devices` holds, uint32, of all processes."""
    own = device_digests(state)
    row = np.array([own.get(device, 0) for device in devices], np.uint32)
    return np.atleast_2d(multihost_utils.process_allgather(row)).sum(0, dtype=np.uint32)
