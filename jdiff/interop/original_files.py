"""Files of Stable Diffusion in the original layout as they go round: other spellings of names, and marks.

Trainers and merging tools write names with a prefix, with a part left out, or as later libraries spell them; `NAMES`
says what they mean. What a network predicts is marked by tensors without content (`v_pred`, `ztsnr`, as of the
AUTOMATIC1111 web UI), by metadata (`modelspec.*` of Stability AI, `ss_*` of kohya's scripts), or not at all.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jdiff.interop.tensors import Tensors, open_file

# Before every name of a file that has them.
WRAPPERS = ("state_dict.", "module.", "model.state_dict.")
_TEXT = r"((?:cond_stage_model|conditioner\.embedders\.0|text_encoders\.clip_[lg])\.transformer\.)"
_MIDDLE = r"(first_stage_model\.(?:encoder|decoder)\.mid\.attn_1\.)"
NAMES = (
    (re.compile(rf"{_TEXT}(?=embeddings\.|encoder\.|final_layer_norm\.)"), r"\1text_model."),
    (re.compile(rf"{_MIDDLE}(?:to_)?(q|k|v)(?:uery|ey|alue)?\."), r"\1\2."),
    (re.compile(rf"{_MIDDLE}(?:to_out\.0|proj_attn)\."), r"\1proj_out."),
    (re.compile(rf"{_MIDDLE}group_norm\."), r"\1norm."),
)
PREDICTIONS = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}
# Steps that the network was trained for at which Stable Diffusion 2 was published at 512 pixels, predicting the noise.
BASE_OF_2 = 875_000


@contextlib.contextmanager
def open_original(path: Path) -> Iterator[Tensors]:
    """The tensors of a file under the names of the code that trained the networks.

    Raises ValueError as `open_file` does, for two tensors of one name, and for weights with scales beside them;
    FileNotFoundError where there is no file."""
    with open_file(path) as tensors:
        wrapper = next((w for w in WRAPPERS if sum(n.startswith(w) for n in tensors.entries) > 1), "")
        places: dict[str, str] = {}
        for name in tensors.entries:
            meant = name.removeprefix(wrapper)
            for pattern, replacement in NAMES:
                meant = pattern.sub(replacement, meant)
            if meant in places:
                raise ValueError(f"{path} holds {meant} twice: {places[meant]} and {name}")
            places[meant] = name
        scaled = next((name for name in places if name.endswith(("scaled_fp8", ".scale_weight"))), None)
        if scaled:
            raise ValueError(f"{path} holds weights in 8 bits with scales beside them ({scaled}), which are not read")
        yield Tensors(
            entries={meant: tensors.entries[name] for meant, name in places.items()},
            read=lambda meant: tensors.read(places[meant]),
            spelled=lambda meant: tensors.spelled(places.get(meant, f"{wrapper}{meant}")),
            metadata=tensors.metadata,
        )


def marked(tensors: Tensors, source: str) -> dict[str, Any]:
    """What a file says of its network's prediction, as fields of a scheduler's config; nothing where it says nothing.

    A network for a schedule that ends in noise alone (2305.08891) predicts v, and is drawn from the last timestep on.
    Raises ValueError for a prediction that it names and that is not known."""
    said = tensors.metadata
    told = said.get("modelspec.prediction_type")
    if told is not None and told not in PREDICTIONS:
        raise ValueError(f"{source}: modelspec.prediction_type={told!r} is not {' or '.join(PREDICTIONS)}")
    fields = {} if told is None else {"prediction_type": PREDICTIONS[told]}
    if "v_pred" in tensors.entries or said.get("ss_v_parameterization") == "True":
        fields["prediction_type"] = "v_prediction"
    if "ztsnr" in tensors.entries or said.get("ss_zero_terminal_snr") == "True":
        fields |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    steps = tensors.entries.get("global_step")
    base = "v2-512" in said.get("modelspec.architecture", "")
    if steps is not None and steps.shape in ((), (1,)) and steps.dtype in ("I64", "I32", "F32"):
        base |= tensors.read("global_step").item() == BASE_OF_2
    return {"prediction_type": "epsilon"} | fields if base else fields
