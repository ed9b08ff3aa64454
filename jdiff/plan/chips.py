"""Accelerators as figures of their makers, per chip.

TPUs: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e and /tpu7x (HBM, its bandwidth, bf16 peak, ICI bandwidth, which is
given there for all links of a chip, both ways), and cloud.google.com/tpu/pricing (on demand, the cheapest region, as of
early 2026). GPUs: NVIDIA's data sheets of H100 SXM and H200 SXM (dense bf16; NVLink one way), a network of 400 Gb/s a
GPU. Power: what the maker
publishes, measured mean of v4 in production (Jouppi et al., 2304.01433, table 4), thermal design power of GPUs; Google
publishes none for v5e, v5p, v6e and tpu7x. Prices and power are defaults of inputs, not facts about a contract.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip."""

    name: str
    platform: str
    """What JAX calls it: "tpu" or "cuda"."""
    hbm: float
    """Bytes of memory."""
    bandwidth: float
    """Bytes a second of that memory."""
    peak: float
    """bf16 FLOP/s."""
    link: float
    """Bytes a second of one link between chips, one way."""
    links: int
    """Links of a chip."""
    dcn: float
    """Bytes a second, one way, of a chip's share of its host's network."""
    cores: int = 1
    """Devices that JAX sees of one chip."""
    configuration: str | None = None
    """What libtpu is to call the chip with both cores as one device, where it would describe them apart."""
    clock: float = 0.0
    """Cycles a second, by which the compiler's cycles become seconds: peak over the FLOPs of a cycle (128 x 128 or
    256 x 256 multiply-adds, times the matrix units of what is one device)."""
    usable: float = 0.984
    """The share of memory that a program may have: 15.75 of 16 GiB on v5e; on GPUs what JAX takes unless
    XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""
    products: float = 0.65
    """What products of matrices are taken to do of the peak where the compiler estimates no cycles (GPUs). ASSUMED: not
    measured here."""
    kernels: float = 0.4
    """What a kernel of attention does of the peak, by the compiler's schedule of it: 0.40 to 0.53 where matrix units
    are 128 x 128, 0.14 to 0.20 where they are 256 x 256 (experiments/benchmarks/kernel_schedules.py). Assumed on
    GPUs."""
    watts: float | None = None
    dollars: float | None = None
    """An hour."""


_MXU = 2 * 128 * 128
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4", platform="tpu", hbm=32 * 2**30, bandwidth=1.2288e12, peak=2.75e14, link=4.5e10, links=6,
            dcn=6.25e9, configuration="megacore", clock=2.75e14 / (8 * _MXU), watts=170.0, dollars=3.22,
        ),
        Chip(
            name="v5e", platform="tpu", hbm=16 * 2**30, bandwidth=8.1e11, peak=1.97e14, link=4.5e10, links=4,
            dcn=3.125e9, clock=1.97e14 / (4 * _MXU), dollars=1.20,
        ),
        Chip(
            name="v5p", platform="tpu", hbm=95 * 2**30, bandwidth=2.765e12, peak=4.59e14, link=9e10, links=6,
            dcn=6.25e9, clock=4.59e14 / (8 * _MXU), dollars=4.20,
        ),
        Chip(
            name="v6e", platform="tpu", hbm=32 * 2**30, bandwidth=1.64e12, peak=9.18e14, link=9e10, links=4,
            dcn=6.25e9, clock=9.18e14 / (16 * _MXU), kernels=0.16, dollars=2.70,
        ),
        Chip(
            name="tpu7x", platform="tpu", hbm=192 * 2**30, bandwidth=7.38e12, peak=2.307e15, link=9e10, links=6,
            dcn=1.25e10, cores=2, clock=2.307e15 / (32 * _MXU), kernels=0.14,
        ),
        Chip(
            name="h100", platform="cuda", hbm=80e9, bandwidth=3.35e12, peak=9.89e14, link=4.5e11, links=1,
            dcn=5e10, usable=0.75, kernels=0.5, watts=700.0,
        ),
        Chip(
            name="h200", platform="cuda", hbm=141e9, bandwidth=4.8e12, peak=9.89e14, link=4.5e11, links=1,
            dcn=5e10, usable=0.75, kernels=0.5, watts=700.0,
        ),
    )
}  # fmt: skip
