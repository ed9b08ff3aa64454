"""From figures to a prediction of time, cost and energy. Nothing here was measured on the hardware.

The time of a step is the sum of two parts. Computing: of fusions with products of matrices, the compiler's estimate of
cycles over the clock (for a product of 8192 x 8192 matrices it comes to 70 to 90% of peak, by chip); of kernels, the
greater of their FLOPs over `Chip.kernels` of the peak and their bytes over the bandwidth of the memory; of all others,
the bytes that they move over that bandwidth. Of those the compiler's cycles are not taken: for x + 1 they come to 0.36
to 0.42 of the published bandwidth; they are the slow end, and given as such. For GPUs the compiler says no cycles:
products take their FLOPs over `Chip.products` of the peak, which is assumed. Without the compiler, the greater of
FLOPs over peak and of reading and writing the state over bandwidth. Sending: a ring over the two links of one axis of
a torus, less what the compiler has laid computing beside, a collective's sending or that computing, whichever is
shorter. The two ends, nothing hidden and all of it, are given beside it. What goes between slices, or between hosts of
GPUs, goes by `Chip.dcn`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jdiff.plan.topology import Topology


@dataclass(frozen=True)
class Prediction:
    """Of one step; a prediction, whatever it was computed from."""

    compute: float
    """Seconds of computing."""
    sending: float
    """Seconds of sending within slices or hosts and between them."""
    hidden: float
    """Of these, behind the computing that the compiler has laid beside it."""
    roofline: float
    """Seconds below which no step of this work can be: peak FLOP/s, whole bandwidths, everything hidden."""
    mfu: float
    """The model's FLOPs over what the chips could do in the predicted time."""
    mfu_waiting: float
    """The same where nothing of sending is hidden."""
    mfu_hidden: float
    """The same where all sending is hidden behind computing."""
    mfu_slow: float
    """The same as `mfu` where the compiler's cycles are right for all fusions."""
    images: float
    """A second, of all chips."""

    @property
    def step(self) -> float:
        """Predicted seconds."""
        return self.compute + self.sending - self.hidden


def predict(
    topology: Topology,
    *,
    batch: int,
    model: float,
    hardware: float,
    compiled: bool,
    cycles: float,
    product_cycles: float,
    moved: float,
    kernels: tuple[float, float] = (0.0, 0.0),
    sent: float,
    between: float,
    beside: Sequence[tuple[float, float]] = (),
) -> Prediction:
    """`model` FLOPs of an example; `hardware` FLOPs, whether the compiler said what follows (`compiled`), `cycles` and
    of these `product_cycles`, bytes `moved` in memory besides, FLOPs and bytes of `kernels`, bytes `sent` and of these
    `between` slices, and of each collective that computing is laid `beside` its bytes and the cycles of that; all of
    one device and step."""
    chip = topology.chip
    peak = chip.peak / chip.cores
    moving = moved * chip.cores / chip.bandwidth
    bound = max(hardware / peak, moving)
    attending = max(kernels[0] / (chip.kernels * peak), kernels[1] * chip.cores / chip.bandwidth)
    if compiled and chip.clock:
        compute, slow = product_cycles / chip.clock + moving + attending, cycles / chip.clock + attending
    elif compiled:
        compute = slow = (hardware - kernels[0]) / (chip.products * peak) + moving + attending
    else:
        compute = slow = bound
    # A ring in both directions of one axis; more axes only make it faster.
    a_byte = chip.cores / (2 * chip.link if chip.platform == "tpu" else chip.link)
    sending = (sent - between) * a_byte + between * chip.cores / chip.dcn
    hidden = min(sum(min(size * a_byte, under / chip.clock) for size, under in beside), compute) if chip.clock else 0.0
    reached = lambda seconds: model * batch / (topology.chips * chip.peak * seconds)
    return Prediction(
        compute=compute,
        sending=sending,
        hidden=hidden,
        roofline=max(bound, sending),
        mfu=reached(compute + sending - hidden),
        mfu_waiting=reached(compute + sending),
        mfu_hidden=reached(max(compute, sending)),
        mfu_slow=reached(slow + sending - hidden),
        images=batch / (compute + sending - hidden),
    )


@dataclass(frozen=True)
class Bill:
    """Of a run, predicted."""

    hours: float
    dollars: float | None
    kilowatt_hours: float | None
    kilograms: float | None
    """Of CO2."""


def bill(
    topology: Topology,
    *,
    images: float,
    rate: float,
    dollars: float | None,
    watts: float | None,
    pue: float,
    grams: float | None,
) -> Bill:
    """Of a run of `images` at `rate` a second: `dollars` a chip and hour, `watts` a chip, `pue` of the data centre,
    `grams` of CO2 a kilowatt hour of its grid. What is not given is not in the bill."""
    hours = images / rate / 3600
    energy = None if watts is None else hours * topology.chips * watts / 1000 * pue
    return Bill(
        hours=hours,
        dollars=None if dollars is None else hours * topology.chips * dollars,
        kilowatt_hours=energy,
        kilograms=None if energy is None or grams is None else energy * grams / 1000,
    )
