"""The smallest recipe that goes through everything; also read by the processes that tests start."""

from jdiff.data import Data
from jdiff.experiment import Experiment
from jdiff.losses import EDMLoss, LogNormalTime
from jdiff.models import DiT
from jdiff.pipelines import Sampling
from jdiff.prediction import EDMPreconditioning
from jdiff.processes import EDM
from jdiff.train.optimizer import Optimizer

experiment = Experiment(
    name="tiny",
    data=Data(size=8, subset="faces"),
    network=DiT(patch_size=4, num_layers=1, num_attention_heads=2, attention_head_dim=8),
    process=EDM(),
    parameterization=EDMPreconditioning(sigma_data=0.5),
    loss=EDMLoss(sigma_data=0.5),
    times=LogNormalTime(),
    optimizer=Optimizer(learning_rate=1e-2, warmup=4, weight_decay=0.01),
    sampling=Sampling(steps=4),
    batch_size=16,
    steps=24,
    log_every=2,
    checkpoint_every=4,
    sample_every=12,
)
