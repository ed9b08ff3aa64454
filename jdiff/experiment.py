"""Everything that defines a run, as a tree of frozen dataclasses of plain values.

A recipe (`experiments/*.py`) makes one; the command line overrides any field by its dotted name; the run directory
holds the result as JSON and carries its hash. Where a field may hold one of several classes, the class is named.
"""

import dataclasses
import hashlib
import importlib.util
import json
from pathlib import Path

from jdiff.config import from_dict, to_dict
from jdiff.data import Data, Latents
from jdiff.json_files import parse_object
from jdiff.losses import (
    EDMLoss,
    GridTime,
    HybridLoss,
    LikelihoodLoss,
    LogitNormalTime,
    LogNormalTime,
    LogUniformTime,
    MinSNRLoss,
    P2Loss,
    SimpleLoss,
    UniformTime,
    VariationalLoss,
    VelocityLoss,
    VLoss,
    X0Loss,
)
from jdiff.models import DhariwalUNet, DiT, JiT, MMDiT, SongUNet, UNet, UNet2DCondition
from jdiff.parallel import Mesh
from jdiff.pipelines import Sampling
from jdiff.prediction import X0, EDMPreconditioning, Eps, LearnedVariance, Score, V, Velocity
from jdiff.processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from jdiff.train.ema import WIDEST
from jdiff.train.faults import Faults
from jdiff.train.keep import Keep
from jdiff.train.optimizer import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: the same experiment on the same data gives the same parameters."""

    name: str
    """Start of the run directory's name."""
    data: Data | Latents
    network: UNet | DiT | JiT | SongUNet | DhariwalUNet | MMDiT | UNet2DCondition
    process: VP | VE | EDM | RectifiedFlow | SubVP | Cosine
    parameterization: Eps | X0 | V | Score | Velocity | EDMPreconditioning | LearnedVariance
    loss: (
        SimpleLoss
        | X0Loss
        | VLoss
        | VelocityLoss
        | EDMLoss
        | LikelihoodLoss
        | MinSNRLoss
        | P2Loss
        | VariationalLoss
        | HybridLoss
    )
    times: UniformTime | LogNormalTime | LogitNormalTime | LogUniformTime | GridTime
    optimizer: Optimizer
    sampling: Sampling
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    faults: Faults = dataclasses.field(default_factory=Faults)
    keep: Keep = dataclasses.field(default_factory=Keep)
    init: str | None = None
    """A run, or a network in the layout of diffusers, in a folder or on the hub, whose parameters training starts from
    where names and shapes fit; the others start as ever."""
    seed: int = 0
    """Of the parameters, the order of the data and the noise."""
    batch_size: int = 32
    """Examples a step, over all devices."""
    accumulate: int = 1
    """Parts of a batch that come one after the other, so that less is held at a time; the step is that of the whole."""
    verify_determinism: bool = False
    """Make updates that are equal to the bit on 1, 2, 4 and 8 devices, which costs time and memory."""
    steps: int = 1000
    """Updates of the parameters."""
    label_dropout: float = 0.1
    """Share of examples trained without their class or their caption, for classifier-free guidance."""
    dropout: float = 0.0
    """Share of the numbers of each residual branch that an update of training leaves out."""
    stochastic_depth: float = 0.0
    """Share of the examples that pass by the last residual branch in an update, and by earlier ones in proportion."""
    stratified_times: bool = False
    """Spread the times of a batch evenly over their distribution, rather than draw each on its own."""
    ema_decay: float = 0.999
    """Of the averaged parameters that samples are drawn from; smaller in the first steps."""
    swa: int | None = None
    """Update from which the average is the plain mean of the parameters (SWA); None for never."""
    profiles: tuple[float, ...] = ()
    """Relative widths of power-function averages kept beside it, as 0.05 and 0.1: from two of them, any width can be
    put together after training."""
    snapshot_every: int = 1000
    """Steps between what is kept of those for good."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    checkpoint_minutes: float | None = None
    """Minutes after which there is one as well, at the next line of metrics; None for steps alone."""
    sample_every: int = 200
    """Steps between pictures in samples/."""

    def __post_init__(self):
        for field, least in [("seed", 0), ("batch_size", 1), ("accumulate", 1), ("steps", 1)] + [
            (f"{what}_every", 1) for what in ("log", "checkpoint", "sample", "snapshot")
        ]:
            if getattr(self, field) < least:
                raise ValueError(f"{field} must be at least {least}, got {getattr(self, field)}")
        if self.swa is not None and self.swa < 1:
            raise ValueError(f"swa must be at least 1, or None; got {self.swa}")
        for width in self.profiles:
            if not 0 < width <= WIDEST:
                raise ValueError(f"profiles must be above 0 and at most {WIDEST}; got {self.profiles}")
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
            raise ValueError(f"checkpoint_minutes must be positive, or None; got {self.checkpoint_minutes}")
        for field in ("label_dropout", "dropout", "stochastic_depth", "ema_decay"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} must be in [0, 1), got {getattr(self, field)}")
        if self.verify_determinism and self.mesh.strategy == "pmap":
            raise ValueError("verify_determinism: mesh.strategy must be jit, got pmap")
        takes_captions = isinstance(self.network, MMDiT | UNet2DCondition)
        if takes_captions and (self.dropout or self.stochastic_depth):
            raise ValueError(f"dropout and stochastic_depth: a {type(self.network).__name__} is trained without")
        if takes_captions != (isinstance(self.data, Latents) and self.data.tokens > 0):
            raise ValueError(
                f"network: a {type(self.network).__name__} {'takes' if takes_captions else 'takes no'} captions, and "
                f"data has {self.data.tokens if isinstance(self.data, Latents) else 0} tokens of them (data.tokens)"
            )
        self.parameterization.check(self.process)
        self.loss.check(self.parameterization, self.times)


def to_json(experiment: Experiment) -> str:
    """The config file of a run."""
    return json.dumps(to_dict(experiment), indent=2) + "\n"


def from_json(text: str) -> Experiment:
    """Inverse of `to_json`. Raises ValueError saying what does not fit."""
    return from_dict(Experiment, parse_object(text, "config"))


def fingerprint(experiment: Experiment) -> str:
    """Eight hexadecimal digits that change with any field."""
    return hashlib.sha256(json.dumps(to_dict(experiment, hashed=True), sort_keys=True).encode()).hexdigest()[:8]


def load_recipe(path: Path) -> Experiment:
    """The `experiment` of a recipe file. Raises ValueError if there is none."""
    if not path.is_file():
        raise ValueError(f"recipe {path} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"recipe {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"recipe {path} is not Python: line {error.lineno}: {error.msg}") from error
    except ImportError as error:
        raise ValueError(f"recipe {path} cannot be imported: {error}") from error
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise ValueError(f"recipe {path} must define `experiment`, an Experiment, got {type(experiment).__name__}")
    return experiment
