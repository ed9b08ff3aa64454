"""The weak error of one-step methods, without sampling.

Over the rows k = 0..m - 1 of a solver's plan, a step without memory takes x to F_k(x, z), z standard normal, and what a
function f of the end is worth on the way is

    v_m = f,    v_k(x) = E v_{k + 1}(F_k(x, z)),

so that the weak error is the integral of v_0 over the law of x at the start, less that of f over the law at the end.
Each v_k is kept on a square lattice, which holds the states of its row with room, and is interpolated by polynomials
of degree eleven; the integral over z is Gauss-Hermite quadrature. What the lattice adds falls with the twelfth power
of its spacing, so that a finer one tells how much it is.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.lab.measure import keys_of, marginal_draws, observables
from jdiff.oracles import Distribution
from jdiff.processes import Process
from jdiff.samplers import Noise, Solver, integrate
from jdiff.typing import Array, Denoiser

TAPS = 12  # points that an interpolation takes along each axis
DRAWS = 4096  # states by which a row's lattice is placed
ROOM = 1.2  # beyond them, over the span of their outer tenth: to six and a half standard deviations of a Gaussian
LATTICES = (32, 48, 64, 80, 112)  # points along each side, tried in turn
INCREMENT, FRESH = 4, 8  # quadrature points an axis: an increment is small with the step, a fresh draw need not be


def memoryless(solver: Solver) -> bool:
    """Whether a step knows of the state alone."""
    carry = jax.eval_shape(solver.init, jnp.zeros((1, 2)))
    return not any(leaf.size for leaf in jax.tree.leaves(carry))


class Lattices(NamedTuple):
    """The corners of the lattice of each row, and of one for the end, [m + 1, 2]."""

    low: Array
    high: Array

    def of(self, row: Array | int | slice) -> "Lattices":
        """The corners of some rows."""
        return Lattices(self.low[row], self.high[row])


def square(low: Array, high: Array, points: int) -> Array:
    """The lattice [points^2, 2] between two corners [2]."""
    share = jnp.linspace(0, 1, points, dtype=low.dtype)
    return low + (high - low) * jnp.stack(jnp.meshgrid(share, share, indexing="ij"), axis=-1).reshape(-1, 2)


def interpolated(values: Array, lattice: Lattices, x: Array) -> Array:
    """Values [points^2, m] of one lattice at x [n, 2]; beyond the lattice, those of its edge."""
    points, (low, high) = round(len(values) ** 0.5), lattice
    at = jnp.clip((x - low) / (high - low), 0, 1) * (points - 1)
    first = jnp.clip(jnp.floor(at) - (TAPS // 2 - 1), 0, points - TAPS)
    tap = np.arange(TAPS)
    apart = (at - first)[..., None] - jnp.asarray(tap, at.dtype)
    others = [np.delete(tap, j) for j in tap]
    weights = jnp.stack(
        [jnp.prod(apart[..., other], axis=-1) / float(np.prod(j - other)) for j, other in enumerate(others)]
    )
    corner = (first[:, 0] * points + first[:, 1]).astype(int)

    def add(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        weight, corner = one
        # Unrolled, the gathers fuse with the sum: ten times as fast as one gather of squares.
        line = [weights[j, :, 1:] * jnp.take(values, corner + j, axis=0, mode="clip") for j in range(TAPS)]
        return total + weight[:, None] * sum(line), None

    lines = (weights[..., 0], corner + points * jnp.arange(TAPS)[:, None])
    return jax.lax.scan(add, jnp.zeros((len(x), values.shape[1]), x.dtype), lines)[0]


def increment_rule(dtype, points: int = INCREMENT) -> tuple[Array, Array]:
    """Values [q, 2] of a standard normal number in the plane, and weights [q], by Gauss and Hermite."""
    z, w = np.polynomial.hermite_e.hermegauss(points)
    nodes, weights = np.stack(np.meshgrid(z, z), axis=-1).reshape(-1, 2), np.outer(w, w).ravel() / w.sum() ** 2
    return jnp.asarray(nodes, dtype), jnp.asarray(weights, dtype)


def _quadrature(solver: Solver, denoise: Denoiser, process: Process, row, dtype) -> tuple[Array, Array]:
    """Values [q, parts, 2] of a step's noise, and weights [q].

    Of an increment in parts, their sum has a product rule of degree seven; what divides it among the parts reaches the
    end of a step by way of a prediction, smaller by a power of the step, and has a rule of degree three.
    """
    x, increments, fresh = jnp.zeros((1, 2), dtype), {}, []

    def between(t: Array, s: Array, part: int = 0) -> Array:
        increments[part] = jnp.exp(process.log_snr(s)) - jnp.exp(process.log_snr(t))
        return x

    def anew(part: int = 0) -> Array:
        fresh.append(part)
        return x

    solver.step(denoise, process, x, solver.init(x), row, Noise(between=between, fresh=anew))
    parts = len(increments) + len(fresh)
    if fresh and parts > 1:
        raise ValueError(f"a step may draw one fresh noise or increments of a path, got {parts} draws of {solver}")
    total, weights = increment_rule(dtype, FRESH if fresh else INCREMENT)
    total = total[:, None]
    if parts == 1:
        return total, weights
    rest = 2 * (parts - 1)
    sides = jnp.asarray(np.sqrt(rest) * np.concatenate([np.eye(rest), -np.eye(rest)]), dtype).reshape(-1, parts - 1, 2)
    nodes = jnp.concatenate([total.repeat(len(sides), axis=0), jnp.tile(sides, (len(total), 1, 1))], axis=1)
    # The reflection that takes the first axis to the direction of the sum.
    lengths = jnp.stack([increments[part] for part in range(parts)])
    mirror = jnp.sqrt(lengths / lengths.sum()) - jnp.eye(parts, dtype=dtype)[0]
    along = jnp.einsum("p,qpd->qd", mirror, nodes) * (2 / jnp.sum(mirror**2))
    return nodes - mirror[:, None] * along[:, None], weights.repeat(len(sides)) / len(sides)


def lattices(solver: Solver, process: Process, target: Distribution, grid: Array) -> Lattices:
    """Squares about the origin, which hold the states of a solver on its way."""
    x = marginal_draws(jax.random.key(4), process, target, grid[0], DRAWS)
    denoise = target.denoiser(process)
    _, path = integrate(keys_of(DRAWS), x, denoise, process, solver, grid, trajectory=True)
    # The greatest of both coordinates: for a target that is symmetric, errors that are not cancel.
    tail, end = jnp.quantile(jnp.abs(path), jnp.asarray([0.9, 1], grid.dtype), axis=(1, 2))
    half = jnp.broadcast_to((end + ROOM * (end - tail))[:, None], (len(path), 2))
    return Lattices(-half, half)


def worths(solver: Solver, process: Process, target: Distribution, grid: Array, places: Lattices, points: int) -> Array:
    """v_k [m, points^2, 6] of the observables on the lattices of the rows."""
    denoise, plan = target.denoiser(process), solver.plan(process, grid)

    def back(later: tuple[Array, Array], row) -> tuple[tuple[Array, Array], Array]:
        (values, last), (lattice, after, row) = later, row
        x = square(lattice.low, lattice.high, points)
        carry = solver.init(x)

        def at_node(node: tuple[Array, Array]) -> Array:
            z, weight = node
            drawn = lambda part=0: jnp.broadcast_to(z[part], x.shape)
            noise = Noise(between=lambda t, s, part=0: drawn(part), fresh=drawn)
            end, _ = solver.step(denoise, process, x, carry, row, noise)
            return weight * jax.lax.cond(last, observables, lambda end: interpolated(values, after, end), end)

        add = lambda total, node: (total + at_node(node), None)
        nodes = _quadrature(solver, denoise, process, row, grid.dtype)
        values, _ = jax.lax.scan(add, jnp.zeros_like(values), nodes)
        return (values, jnp.asarray(False)), values

    rows = (places.of(slice(None, -1)), places.of(slice(1, None)), plan)
    begin = (jnp.zeros((points**2, 6), grid.dtype), jnp.asarray(True))
    return jax.lax.scan(back, begin, rows, reverse=True)[1]


def lattice_mean(target: Distribution, process: Process, t: Array, lattice: Lattices, values: Array) -> Array:
    """The mean [m] over the true law at t of values [points^2, m] on one lattice."""
    points = round(len(values) ** 0.5)
    density = jnp.exp(target.log_density(process, square(*lattice, points), t))
    return density @ values / density.sum()


@partial(jax.jit, static_argnames="points")
def weak_errors(solver: Solver, process: Process, target: Distribution, grid: Array, points: int) -> Array:
    """Errors [6] of the mean, the second moments and E |x|^4 at the grid's end, from the true law at its start, with
    `points` along each side of the lattices. For a solver that is `memoryless`."""
    target = jax.tree.map(lambda leaf: jnp.asarray(leaf, grid.dtype), target)
    places = lattices(solver, process, target, grid)
    begin = worths(solver, process, target, grid, places, points)[0]
    end = observables(square(*places.of(-1), points))
    mean = lambda row, values: lattice_mean(target, process, grid[row], places.of(row), values)
    return mean(0, begin) - mean(-1, end)


def weak_error(solver: Solver, process: Process, target: Distribution, grid: Array) -> float | None:
    """The norm of `weak_errors`, from the first lattice that differs from the one before by less than a tenth of it;
    None if even the finest does not."""
    coarse, *others = LATTICES
    before = np.asarray(weak_errors(solver, process, target, grid, coarse))
    for points in others:
        errors = np.asarray(weak_errors(solver, process, target, grid, points))
        if np.linalg.norm(errors - before) < np.linalg.norm(errors) / 10:
            return float(np.linalg.norm(errors))
        before = errors
    return None
