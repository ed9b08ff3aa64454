"""From figures to a prediction of time, cost and energy. Nothing here was measured on the hardware.

The time of a step is the sum of two parts. Computing: the compiler's own estimate of cycles of all fusions, each as
often as it runs, over the clock; without it (GPUs, or no compiler), the greater of FLOPs over peak and a lower bound of
memory traffic over bandwidth. Sending: a ring over two links of each axis of a torus that a collective uses; what is
hidden behind computing is not known ahead of time, so both ends are given: all of it hidden (the greater of the two
parts) and none (their sum). The prediction is the sum.
"""

from dataclasses import dataclass

from jdiff.plan.topology import Topology


@dataclass(frozen=True)
class Prediction:
    """Of one step; a prediction, whatever it was computed from."""

    compute: float
    """Seconds of computing."""
    sending: float
    """Seconds of sending within slices and between them."""
    roofline: float
    """Seconds below which no step of this work can be: peak FLOP/s, whole bandwidths, everything hidden."""
    mfu: float
    """The model's FLOPs over what the chips could do in the predicted time."""
    mfu_hidden: float
    """The same where all sending is hidden behind computing."""
    images: float
    """A second, of all chips."""

    @property
    def step(self) -> float:
        """Predicted seconds."""
        return self.compute + self.sending


def predict(
    topology: Topology,
    *,
    batch: int,
    model: float,
    hardware: float,
    cycles: float,
    traffic: float,
    sent: float,
    between: float,
) -> Prediction:
    """`model` FLOPs of an example; `hardware` FLOPs, `cycles` (0 if not known), least memory `traffic` in bytes, bytes
    `sent` and of these `between` slices, all of one device and step."""
    chip = topology.chip
    peak = chip.peak / chip.cores
    bound = max(hardware / peak, traffic * chip.cores / chip.bandwidth)
    compute = cycles / chip.clock if cycles and chip.clock else bound
    # A ring in both directions of one axis; more axes only make it faster.
    inside = (sent - between) * chip.cores / (2 * chip.link if chip.platform == "tpu" else chip.link)
    outside = between * chip.cores / chip.dcn
    sending = inside + outside
    could = topology.chips * chip.peak
    total = model * batch
    return Prediction(
        compute=compute,
        sending=sending,
        roofline=max(bound, sending),
        mfu=total / (could * (compute + sending)),
        mfu_hidden=total / (could * max(compute, sending)),
        images=batch / (compute + sending),
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
