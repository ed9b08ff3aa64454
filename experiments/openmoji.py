"""Faces from OpenMoji: the first recipe, for a laptop.

    jdiff train experiments/openmoji.py

522 portraits at 32 pixels, 18 classes (gender and skin tone), EDM with a U-Net of 3M parameters on 2x2 patches.
Two CPU cores without an accelerator: 297 s, 152 images/s. Frechet distance to held-out portraits in random-conv-64:
0.2267 (0.0028 over three trainings), that of real images 0.2313. More: experiments/results/first_recipe.md.
"""

from jdiff.data import Data
from jdiff.experiment import Experiment
from jdiff.losses import EDMLoss, LogNormalTime
from jdiff.models import UNet
from jdiff.pipelines import Sampling
from jdiff.prediction import EDMPreconditioning
from jdiff.processes import EDM
from jdiff.train.optimizer import Optimizer

# Standard deviation of the drawings, per value: mostly white, with black lines.
SIGMA_DATA = 0.74

experiment = Experiment(
    name="openmoji",
    data=Data(subset="people", size=32, flip=False),
    network=UNet(channels=64, multipliers=(1, 2, 2), blocks=(2, 2, 2), attention=(2,), heads=4, patch=2),
    process=EDM(sigma_min=0.02),
    parameterization=EDMPreconditioning(sigma_data=SIGMA_DATA),
    loss=EDMLoss(sigma_data=SIGMA_DATA),
    times=LogNormalTime(mean=-0.8, std=1.2),
    optimizer=Optimizer(learning_rate=2e-3, warmup=150),
    sampling=Sampling(solver="dpmpp_2m", grid="karras", steps=18, guidance=1.0),
    batch_size=16,
    steps=2800,
    ema_decay=0.995,
    log_every=20,
    checkpoint_every=500,
    sample_every=1000,
)
