"""The optimizer: one of Optax's behind clipping, with a warm-up and a decay to zero counted in updates."""

import dataclasses
from typing import Any, Literal

import jax
import optax

from jdiff.typing import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW, LAMB or LARS with a learning rate that rises, then falls to zero at the last step or stays."""

    algorithm: Literal["adamw", "lamb", "lars"] = "adamw"
    """AdamW (1711.05101); for large batches LAMB (1904.00962) or LARS (1708.03888), whose steps are in proportion to
    the norm of what they change: the learning rate is the share of it, in LARS a thousand times that."""
    learning_rate: float = 1e-3
    """The greatest learning rate."""
    warmup: int = 100
    """Updates over which the learning rate rises from zero."""
    decay: Literal["cosine", "none"] = "cosine"
    """How the learning rate goes on after the warm-up."""
    beta1: float = 0.9
    """Decay of the mean of the gradient; the momentum of LARS."""
    beta2: float = 0.99
    """Decay of the mean of its square."""
    weight_decay: float = 0.0
    """Decoupled weight decay of arrays with two axes or more."""
    clip: float = 1.0
    """Greatest global norm of the gradient."""

    def __post_init__(self):
        if self.algorithm not in ("adamw", "lamb", "lars"):
            raise ValueError(f"optimizer.algorithm must be adamw, lamb or lars, got {self.algorithm!r}")
        for field in ("learning_rate", "clip"):
            if getattr(self, field) <= 0:
                raise ValueError(f"optimizer.{field} must be positive, got {getattr(self, field)}")
        for field in ("warmup", "weight_decay"):
            if getattr(self, field) < 0:
                raise ValueError(f"optimizer.{field} must not be negative, got {getattr(self, field)}")

    def schedule(self, steps: int) -> optax.Schedule:
        """Learning rate by update, for a run of `steps`."""
        if self.decay == "none" and not self.warmup:
            return optax.constant_schedule(self.learning_rate)  # Optax takes no warm-up for one that never ends
        if self.decay == "none":
            return optax.warmup_constant_schedule(0.0, self.learning_rate, self.warmup)
        # Zero is reached after the last update, which it would waste; a run shorter than its warm-up ends inside it.
        total = max(steps, self.warmup) + 1
        return optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, self.warmup, total)

    def build(self, steps: int) -> optax.GradientTransformation:
        """The gradient transformation for a run of `steps` updates."""

        def decayed(params: Params) -> Params:
            return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)

        schedule = self.schedule(steps)
        rate = lambda count: schedule(count + 1)
        decay: dict[str, Any] = {"weight_decay": self.weight_decay}
        if self.algorithm == "lars":
            chosen = optax.lars(rate, momentum=self.beta1, weight_decay_mask=decayed, **decay)
        else:
            make = optax.lamb if self.algorithm == "lamb" else optax.adamw
            chosen = make(rate, b1=self.beta1, b2=self.beta2, mask=decayed, **decay)
        return optax.chain(optax.clip_by_global_norm(self.clip), chosen)
