"""DiT-XL/2 as a flow, on latents of 256 x 256 pictures: the recipe that pods are planned with.

    jdiff plan experiments/pod_dit_xl2.py --topology v5p:8x8x8 --mesh data=64,fsdp=8
    jdiff train experiments/pod_dit_xl2.py --data.folder ENCODED --data.pipeline FOLDER --mesh.fsdp 8

675M parameters, 256 tokens an image. Never trained: what is known are predictions, in results/pod_plans.md.
"""

from jdiff.data import Latents
from jdiff.experiment import Experiment
from jdiff.losses import LogitNormalTime, VelocityLoss
from jdiff.models import Compute, DiT
from jdiff.parallel import Mesh
from jdiff.pipelines import Sampling
from jdiff.prediction import Velocity
from jdiff.processes import RectifiedFlow
from jdiff.train.optimizer import Optimizer

experiment = Experiment(
    name="pod_dit_xl2",
    data=Latents(folder="encoded", pipeline="autoencoder", size=32, channels=4),
    network=DiT(compute=Compute(dtype="bfloat16", remat="dots")),
    process=RectifiedFlow(),
    parameterization=Velocity(),
    loss=VelocityLoss(),
    times=LogitNormalTime(),
    optimizer=Optimizer(learning_rate=1e-4, warmup=1000, decay="none"),
    sampling=Sampling(solver="euler", grid="uniform", steps=50, guidance=4.0),
    mesh=Mesh(fsdp=8),
    batch_size=16384,
    steps=100_000,
    ema_decay=0.9999,
    log_every=50,
    checkpoint_every=1000,
    sample_every=5000,
)
