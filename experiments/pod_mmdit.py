"""An MM-DiT of the size of Stable Diffusion 3 medium, on latents of 512 x 512 pictures with captions.

    jdiff plan experiments/pod_mmdit.py --topology v5p:8x8x8 --mesh data=8,fsdp=64
    jdiff train experiments/pod_mmdit.py --data.folder ENCODED --data.pipeline FOLDER --mesh.fsdp 64

2.0G parameters, 1024 tokens of the image and 154 of the text. Never trained: predictions in results/pod_plans.md.
"""

from jdiff.data import Latents
from jdiff.experiment import Experiment
from jdiff.losses import LogitNormalTime, VelocityLoss
from jdiff.models import Compute, MMDiT
from jdiff.parallel import Mesh
from jdiff.pipelines import Sampling
from jdiff.prediction import Velocity
from jdiff.processes import RectifiedFlow
from jdiff.train.optimizer import Optimizer

experiment = Experiment(
    name="pod_mmdit",
    data=Latents(folder="encoded", pipeline="stable-diffusion-3", size=64, channels=16, tokens=154),
    network=MMDiT(
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=192,
        compute=Compute(dtype="bfloat16", remat="dots"),
    ),
    process=RectifiedFlow(),
    parameterization=Velocity(),
    loss=VelocityLoss(),
    times=LogitNormalTime(),
    optimizer=Optimizer(learning_rate=1e-4, warmup=1000, decay="none"),
    sampling=Sampling(solver="euler", grid="uniform", steps=28, guidance=5.0),
    mesh=Mesh(fsdp=8),
    batch_size=8192,
    steps=100_000,
    ema_decay=0.9999,
    log_every=50,
    checkpoint_every=1000,
    sample_every=5000,
)
