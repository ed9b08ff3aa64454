"""A plan: what training or drawing needs on a topology, whether it fits, and what it is predicted to take."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jdiff.experiment import Experiment
from jdiff.plan import analytic
from jdiff.plan.compiled import Compiled, compiled, compiled_step
from jdiff.plan.mesh import described
from jdiff.plan.predict import Bill, Prediction, bill, predict
from jdiff.plan.topology import Topology
from jdiff.train.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Economy:
    """What a run costs."""

    images: float
    """Examples trained on, all epochs together."""
    dollars: float | None = None
    """A chip and hour; the list price where there is one."""
    watts: float | None = None
    """A chip at work; what its maker publishes, where it does."""
    pue: float = 1.1
    """Power of the data centre over that of its computers."""
    grams: float | None = None
    """CO2 of a kilowatt hour of its grid."""


@dataclass(frozen=True)
class Plan:
    """All figures are of one device and one step of training, or one batch of drawing, unless they say otherwise."""

    program: str
    """"step" or "drawing"."""
    topology: Topology
    mesh: dict[str, int]
    batch: int
    remat: str
    arguments: dict[str, int]
    """Bytes by class, exact."""
    temporary: float | None
    """Bytes, estimated without the compiler."""
    available: float
    """Bytes of memory."""
    model: float | None
    """FLOPs of the network for one example, by formula; None where there is none."""
    hardware: float | None
    """FLOPs by formula, with what is computed again."""
    sent: dict[str, float]
    """Bytes by kind of collective, by formula."""
    compiled: Compiled | None
    missing: str
    """Why there is no compiled part, where there is none."""
    prediction: Prediction | None
    bill: Bill | None
    seconds: float
    """That the plan took."""

    @property
    def needed(self) -> float:
        """Bytes: what the compiler says, else the estimate."""
        if self.compiled is not None:
            return self.compiled.peak
        return sum(self.arguments.values()) + (self.temporary or 0.0)

    @property
    def fits(self) -> bool:
        """Whether memory holds it: the compiler's verdict, else the estimate's."""
        return self.compiled.fits if self.compiled is not None else self.needed <= self.available


def make(experiment: Experiment, topology: Topology, *, classes: int, economy: Economy, cache: Path) -> Plan:
    """The plan of a run. Raises ValueError for a mesh, a batch or a network that does not fit the topology."""
    start = time.perf_counter()
    trainer, missing = described(experiment, topology, classes)
    said = None if missing else compiled_step(trainer, topology, cache)
    return assembled(trainer, topology, economy, said, missing, start)


def drawing(experiment: Experiment, topology: Topology, *, classes: int, economy: Economy, cache: Path) -> Plan:
    """The plan of drawing `batch_size` images at once, as the experiment samples. Raises ValueError as `make` does."""
    start = time.perf_counter()
    trainer, missing = described(experiment, topology, classes)
    null = {
        name: np.zeros(trainer.abstract_batch[name].shape[1:], trainer.abstract_batch[name].dtype)
        for name in trainer.conditions
    }
    pipeline = trainer.pipeline(experiment.batch_size, null)
    params = trainer.abstract.ema
    work = analytic.work(experiment)
    model = None if work is None else pipeline.evaluations * work.forward
    plan = Plan(
        program="drawing",
        topology=topology,
        mesh=dict(trainer.mesh.shape),
        batch=pipeline.chunk,
        remat="none",
        arguments={"parameters": analytic.held(pipeline.laid_out(params), topology.chip.platform)},
        temporary=None,
        available=_available(topology),
        model=model,
        hardware=None if model is None else model * pipeline.chunk / topology.size,
        sent={},
        compiled=None if missing else compiled(pipeline.lower(params), topology, cache),
        missing=missing,
        prediction=None,
        bill=None,
        seconds=0.0,
    )
    return _predicting(plan, economy, 0.0, start)


def assembled(
    trainer: Trainer, topology: Topology, economy: Economy, compiled: Compiled | None, missing: str, start: float
) -> Plan:
    """The plan of a trainer, with what the compiler said of it where it did."""
    experiment, work, sent = trainer.experiment, analytic.work(trainer.experiment), analytic.sent(trainer)
    arguments = analytic.arguments(trainer, topology.chip.platform)
    compute = getattr(trainer.experiment.network, "compute", None)
    remat, batch = compute.remat if compute is not None else "none", experiment.batch_size
    again = None if work is None else work.hardware(remat, analytic.fused(trainer, topology.chip))
    plan = Plan(
        program="step",
        topology=topology,
        mesh=dict(trainer.mesh.shape),
        batch=batch,
        remat=remat,
        arguments=arguments,
        temporary=analytic.temporary(trainer, topology.chip),
        available=_available(topology),
        model=None if work is None else work.model,
        hardware=None if again is None else again * batch / topology.size,
        sent=sent,
        compiled=compiled,
        missing=missing,
        prediction=None,
        bill=None,
        seconds=0.0,
    )
    return _predicting(plan, economy, _between(trainer, topology, sent), start)


def _available(topology: Topology) -> float:
    """Bytes of a device that a program may have."""
    return topology.chip.hbm / topology.chip.cores * topology.chip.usable


def _predicting(plan: Plan, economy: Economy, between: float, start: float) -> Plan:
    """The plan with its prediction and bill, where it fits and its FLOPs are known; `between` bytes pass from slice to
    slice by formula."""
    topology, said, arguments = plan.topology, plan.compiled, plan.arguments
    measured = said if said is not None and said.fits else None
    if plan.model is not None and (measured or said is None):
        hardware = measured.flops if measured else plan.hardware or 0.0
        prediction = predict(
            topology,
            batch=plan.batch,
            model=plan.model,
            hardware=hardware,
            compiled=measured is not None,
            cycles=measured.cycles if measured else 0.0,
            product_cycles=measured.product_cycles if measured else 0.0,
            moved=measured.moved if measured else 2.0 * sum(arguments.values()),
            kernels=(measured.kernel_flops, measured.kernel_moved) if measured else (0.0, 0.0),
            sent=sum(measured.sent.values()) if measured else sum(plan.sent.values()),
            between=measured.between if measured else between,
            beside=measured.beside if measured else (),
        )
        cost = bill(
            topology,
            images=economy.images,
            rate=prediction.images,
            dollars=economy.dollars if economy.dollars is not None else topology.chip.dollars,
            watts=economy.watts if economy.watts is not None else topology.chip.watts,
            pue=economy.pue,
            grams=economy.grams,
        )
        plan = dataclasses.replace(plan, prediction=prediction, bill=cost)
    return dataclasses.replace(plan, seconds=time.perf_counter() - start)


def _between(trainer: Trainer, topology: Topology, sent: dict[str, float]) -> float:
    """Bytes that go between slices, or hosts of GPUs: those of the sum over `data`, once these are several, and all
    where `fsdp` is more than a host; a ring passes every device, and the slower link is the whole ring's."""
    if topology.chip.platform == "cuda" and topology.shape[0] > 1:
        return sum(sent.values()) if trainer.mesh.shape["fsdp"] > topology.shape[-1] else sent["all-reduce"]
    return sent["all-reduce"] if topology.slices > 1 else 0.0


def figures(plan: Plan) -> dict[str, Any]:
    """The plan as plain values, for JSON."""
    return {
        "program": plan.program,
        "topology": str(plan.topology),
        "chips": plan.topology.chips,
        "mesh": plan.mesh,
        "batch_size": plan.batch,
        "remat": plan.remat,
        "fits": plan.fits,
        "bytes_needed": plan.needed,
        "bytes_available": plan.available,
        "bytes_of_arguments": plan.arguments,
        "bytes_temporary_estimated": plan.temporary,
        "compiled": None if plan.compiled is None else dataclasses.asdict(plan.compiled),
        "not_compiled_because": plan.missing or None,
        "model_flops_a_step": None if plan.model is None else plan.model * plan.batch,
        "hardware_flops_a_step_and_device_analytic": plan.hardware,
        "bytes_sent_analytic": plan.sent,
        "prediction": None
        if plan.prediction is None
        else dataclasses.asdict(plan.prediction) | {"step": plan.prediction.step},
        "bill": None if plan.bill is None else dataclasses.asdict(plan.bill),
        "seconds": plan.seconds,
    }


def lines(plan: Plan) -> list[str]:
    """The plan in words."""
    mesh = ", ".join(f"{name}={count}" for name, count in plan.mesh.items())
    of = f"remat {plan.remat}" if plan.program == "step" else "drawn at once"
    said = [
        f"plan         {plan.topology}, {plan.topology.chips} chips; mesh {mesh}; batch {plan.batch}, "
        f"{plan.batch / plan.topology.chips:g} a chip; {of}"
    ]
    room = plan.available - plan.needed
    word = "by the compiler" if plan.compiled is not None else "ESTIMATED, not compiled"
    said.append(
        f"memory       {'fits' if plan.fits else 'does NOT fit'} ({word}): needs {_gib(plan.needed)} of "
        f"{_gib(plan.available)}, {_gib(abs(room))} {'to spare' if room >= 0 else 'too much'}"
    )
    parts = [f"{name} {_gib(size)}" for name, size in plan.arguments.items()]
    exact = plan.compiled is not None and plan.compiled.fits
    temporaries = plan.compiled.temporaries if exact and plan.compiled else plan.temporary
    said.append(f"             {', '.join(parts)}; temporary {_gib(temporaries)}{', not all at once' if exact else ''}")
    if plan.missing:
        said.append(f"             not compiled: {plan.missing}")
    if plan.hardware is not None and plan.model is not None:
        counted = f"{plan.compiled.flops:.4e} compiled, " if exact and plan.compiled else ""
        said.append(
            f"FLOPs        a device: {counted}{plan.hardware:.4e} by formula with what is computed again; the model's "
            f"{plan.model * plan.batch / plan.topology.size:.4e}"
        )
    else:
        said.append("FLOPs        there is no closed formula for this network")
    sent = [f"{_kinds(plan.compiled.sent)} compiled"] if exact and plan.compiled else []
    sent += [f"{_kinds(plan.sent)} by formula"] if plan.program == "step" else []
    said.append(f"sent         a device: {'; '.join(sent) or 'unknown'}")
    if exact and plan.compiled and plan.compiled.between:
        apart = "hosts" if plan.topology.chip.platform == "cuda" else "slices"
        said.append(f"             of which {_gib(plan.compiled.between)} between {apart}")
    if plan.prediction is not None:
        said += _predicted(plan.program, plan.prediction, plan.bill)
    said.append(f"took         {plan.seconds:.1f} s")
    return said


def _predicted(program: str, prediction: Prediction, cost: Bill | None) -> list[str]:
    slow = f", {prediction.mfu_slow:.1%} if the compiler's cycles are right for all of it"
    slow = slow if prediction.mfu_slow != prediction.mfu else ""
    said = [
        f"PREDICTION   {program} {prediction.step * 1e3:.1f} ms: computing {prediction.compute * 1e3:.1f}, sending "
        f"{prediction.sending * 1e3:.1f}, of which {prediction.hidden * 1e3:.1f} behind computing; not below "
        f"{prediction.roofline * 1e3:.1f} by roofline",
        f"             MFU {prediction.mfu:.1%}, {prediction.mfu_waiting:.1%} if no sending is hidden, "
        f"{prediction.mfu_hidden:.1%} if all is{slow}",
        f"             {prediction.images:,.0f} images/s",
    ]
    if cost is not None:
        dollars = "price unknown: give --dollars" if cost.dollars is None else f"${cost.dollars:,.0f}"
        power = cost.kilowatt_hours
        energy = "power not published: give --watts" if power is None else f"{power:,.0f} kWh"
        carbon = "" if cost.kilograms is None else f", {cost.kilograms:,.0f} kg CO2"
        said.append(f"             the run: {cost.hours:.1f} h, {dollars}, {energy}{carbon}")
    return said


def _gib(size: float | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.2f} GiB"


def _kinds(sent: dict[str, float]) -> str:
    return ", ".join(f"{kind} {_gib(size)}" for kind, size in sent.items() if size) or "nothing"
