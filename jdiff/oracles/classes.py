"""A mixture whose components carry class labels, so that everything about the classes is known at every noise level.

With J_k(x) = log w_k + log N(x; alpha m_k, S_k), and l_k the class of component k,

    log p(y | x_t) = logsumexp over {k: l_k = y} of J_k  -  logsumexp over all k of J_k,

and the predictor conditioned on y is the mixture's own with the components of other classes left out. At any one t the
scores are those of exact densities, so p(y | x_t) ~ p_t(x | y) / p_t(x) holds, and with it classifier guidance.
"""

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.oracles.mixture import Mixture
from jdiff.prediction import Prediction
from jdiff.processes import Process
from jdiff.pytree import pytree
from jdiff.typing import Array, Cond, Predictor, Time


@final
@pytree
@dataclasses.dataclass(frozen=True)
class Classes:
    """A mixture and the class of each of its components, made by `classes`; `num_classes` itself is "no label"."""

    mixture: Mixture
    labels: Array
    num_classes: int = dataclasses.field(metadata={"static": True})

    def log_posterior(self, process: Process, x: Array, t: Time) -> Array:
        """log p(y | x_t) of every class, [B, num_classes]."""
        inside = self.labels == jnp.arange(self.num_classes)[:, None]
        joint = self.mixture.log_joint(process, x, t)
        by_class = jax.nn.logsumexp(jnp.where(inside, joint[:, None], -jnp.inf), axis=-1)
        return by_class - jax.nn.logsumexp(joint, axis=-1, keepdims=True)

    def predictor(self, process: Process) -> Predictor:
        """The exact predictor (x [B, D], t [] or [B], cond), with cond = {"label": integers [B]}.

        The label num_classes is the whole mixture. A label outside 0..num_classes gives NaN, never another class.
        """

        def predict(x: Array, t: Time, cond: Cond) -> Prediction:
            label = cond["label"][:, None]
            allowed = (self.labels == label) | (label == self.num_classes)
            joint = jnp.where(allowed, self.mixture.log_joint(process, x, t), -jnp.inf)
            return self.mixture.predict_among(process, x, t, joint)

        return predict

    def given(self, label: int) -> Mixture:
        """The mixture of one class. Raises ValueError for a label outside 0..num_classes - 1."""
        if not 0 <= label < self.num_classes:
            raise ValueError(f"label must be in 0..{self.num_classes - 1}, got {label}")
        inside = np.asarray(self.labels) == label
        kept = jax.tree.map(lambda value: value[inside], self.mixture)
        return dataclasses.replace(kept, log_weights=jax.nn.log_softmax(kept.log_weights))


def classes(mixture: Mixture, labels: Array) -> Classes:
    """A mixture of K components with their classes, integers [K] in which each of 0..max occurs.

    Raises ValueError otherwise.
    """
    values = np.asarray(labels)
    if values.shape != mixture.log_weights.shape or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape {mixture.log_weights.shape}, got {values.dtype} of shape {values.shape}"
        )
    if set(values.tolist()) != set(range(int(values.max()) + 1)):
        raise ValueError(f"labels must hold each class of 0..{values.max()}, got {sorted(set(values.tolist()))}")
    return Classes(mixture, jnp.asarray(values), int(values.max()) + 1)
