"""The configs of networks in original files of Stable Diffusion, as far as shapes tell them.

What shapes do not tell is what the published networks have: 32 groups, 8 heads in the U-Net of Stable Diffusion 1 and
heads of 64 channels everywhere else, sinusoids of 256 numbers for the sizes in XL, the latents' scale. The widths, the
depths and what is attended to are counted.
"""

import math
import re
from collections.abc import Mapping

from jdiff.interop.tensors import Entry
from jdiff.models import AutoencoderKL, CLIPText, CLIPTextWithProjection, MMDiT, T5Encoder, UNet2DCondition

Text = CLIPText | CLIPTextWithProjection

HEAD = 64  # channels of a head
ADDED = 256  # sinusoids of each size in XL
SD2_LAYERS = 23  # of 24: Stable Diffusion 2 reads what its encoder's last layer is given


class Shapes:
    """The shapes of one network's tensors, by their names without the prefix that they have in the file."""

    def __init__(self, entries: Mapping[str, Entry], prefix: str, source: str):
        self.prefix, self.source = prefix, source
        self.found = {n.removeprefix(prefix): entry.shape for n, entry in entries.items() if n.startswith(prefix)}

    def size(self, name: str, axis: int = 0) -> int:
        """An axis of a tensor. Raises ValueError where there is no such tensor or no such axis."""
        shape = self.found.get(name)
        if shape is None or len(shape) <= axis or not shape[axis]:
            what = "it is missing" if shape is None else f"its shape is {shape}"
            raise ValueError(f"{self.source}: {self.prefix}{name} must say how large the network is, and {what}")
        return shape[axis]

    def has(self, prefix: str) -> bool:
        """Whether there is a tensor whose name begins so."""
        return any(name.startswith(prefix) for name in self.found)

    def count(self, pattern: str) -> int:
        """How many different values the group of a pattern has at the begin of names."""
        return len({found[1] for found in (re.match(pattern, name) for name in self.found) if found})

    def heads(self, width: int) -> int:
        """How many heads of 64 channels there are. Raises ValueError where they do not divide."""
        if width % HEAD or not width:
            raise ValueError(f"{self.source}: {self.prefix}: width {width} is not a multiple of {HEAD}, that of a head")
        return width // HEAD


def unet(shapes: Shapes, *, sample_size: int, heads: int | None, sizes: bool = False) -> UNet2DCondition:
    """The U-Net, with so many heads at each level, or heads of 64 channels for None. `sizes`: told them, as in XL."""
    blocks = shapes.count(r"input_blocks\.(\d+)\.")
    ends = [i for i in range(blocks) if shapes.has(f"input_blocks.{i}.0.op.")]
    levels, depth = len(ends) + 1, (ends[0] if ends else blocks) - 1
    if depth < 1 or blocks != levels * (depth + 1) or ends != [depth + 1 + i * (depth + 1) for i in range(levels - 1)]:
        raise ValueError(
            f"{shapes.source}: {shapes.prefix}input_blocks: {blocks} of them, halving at {ends or 'none'}, are no "
            "levels of as many blocks each"
        )
    firsts = [f"input_blocks.{1 + level * (depth + 1)}" for level in range(levels)]
    widths = tuple(shapes.size(f"{first}.0.in_layers.2.weight") for first in firsts)
    crossed = [shapes.has(f"{first}.1.") for first in firsts]
    layers = lambda at: shapes.count(rf"{re.escape(at)}\.1\.transformer_blocks\.(\d+)\.") or 1
    depths = [layers(first) for first in firsts[:-1]] + [layers(firsts[-1] if crossed[-1] else "middle_block")]
    return UNet2DCondition(
        sample_size=sample_size,
        in_channels=shapes.size("input_blocks.0.0.weight", 1),
        out_channels=shapes.size("out.2.weight"),
        down_block_types=tuple("CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in crossed),
        up_block_types=tuple("CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in reversed(crossed)),
        block_out_channels=widths,
        layers_per_block=depth,
        cross_attention_dim=shapes.size("middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
        transformer_layers_per_block=depths[0] if len(set(depths)) == 1 else tuple(depths),
        attention_head_dim=tuple(map(shapes.heads, widths)) if heads is None else heads,
        use_linear_projection=len(shapes.found.get("middle_block.1.proj_in.weight", ())) == 2,
        addition_embed_type="text_time" if sizes else None,
        addition_time_embed_dim=ADDED if sizes else None,
        projection_class_embeddings_input_dim=shapes.size("label_emb.0.0.weight", 1) if sizes else None,
    )


def autoencoder(shapes: Shapes, *, sample_size: int, scale: float, shift: float | None = None) -> AutoencoderKL:
    """The autoencoder, with what its latents are shifted and multiplied by."""
    levels = shapes.count(r"encoder\.down\.(\d+)\.")
    return AutoencoderKL(
        in_channels=shapes.size("encoder.conv_in.weight", 1),
        out_channels=shapes.size("decoder.conv_out.weight"),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(shapes.size(f"encoder.down.{i}.block.0.conv1.weight") for i in range(levels)),
        layers_per_block=shapes.count(r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=shapes.size("decoder.conv_in.weight", 1),
        sample_size=sample_size,
        scaling_factor=scale,
        shift_factor=shift,
        mid_block_add_attention=shapes.has("decoder.mid.attn_1."),
        use_quant_conv=shapes.has("quant_conv."),
        use_post_quant_conv=shapes.has("post_quant_conv."),
    )


# Old configs say that the end token is 2: the greatest id of a prompt, which is right for CLIP's vocabulary.
END = 2


def clip(shapes: Shapes, *, project: bool = False, hidden_act: str = "quick_gelu") -> Text:
    """An encoder of prompts in transformers' names, which projects to its own width."""
    width = shapes.size("text_model.embeddings.token_embedding.weight", 1)
    fields = {
        "vocab_size": shapes.size("text_model.embeddings.token_embedding.weight"),
        "hidden_size": width,
        "intermediate_size": shapes.size("text_model.encoder.layers.0.mlp.fc1.weight"),
        "projection_dim": shapes.size("text_projection.weight") if shapes.has("text_projection.") else width,
        "num_hidden_layers": shapes.count(r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": shapes.heads(width),
        "max_position_embeddings": shapes.size("text_model.embeddings.position_embedding.weight"),
        "hidden_act": hidden_act,
        "eos_token_id": END,
    }
    return CLIPTextWithProjection(**fields) if project else CLIPText(**fields)


def open_clip(shapes: Shapes, *, project: bool) -> Text:
    """An encoder of prompts in open_clip's names: with its projection in XL, without its last layer in 2."""
    layers, width = shapes.count(r"transformer\.resblocks\.(\d+)\."), shapes.size("token_embedding.weight", 1)
    fields = {
        "vocab_size": shapes.size("token_embedding.weight"),
        "hidden_size": width,
        "intermediate_size": shapes.size("transformer.resblocks.0.mlp.c_fc.weight"),
        "projection_dim": shapes.size("text_projection", 1) if project else width,
        "num_hidden_layers": layers if project else min(layers, SD2_LAYERS),
        "num_attention_heads": shapes.heads(width),
        "max_position_embeddings": shapes.size("positional_embedding"),
        "hidden_act": "gelu",
        "eos_token_id": END,
    }
    return CLIPTextWithProjection(**fields) if project else CLIPText(**fields)


def t5(shapes: Shapes) -> T5Encoder:
    """T5's encoder."""
    attention, dense = "encoder.block.0.layer.0.SelfAttention", "encoder.block.0.layer.1.DenseReluDense"
    heads, gated = shapes.size(f"{attention}.relative_attention_bias.weight", 1), shapes.has(f"{dense}.wi_0.")
    return T5Encoder(
        vocab_size=shapes.size("shared.weight"),
        d_model=shapes.size("shared.weight", 1),
        d_kv=shapes.size(f"{attention}.q.weight") // heads,
        d_ff=shapes.size(f"{dense}.{'wi_0' if gated else 'wi'}.weight"),
        num_layers=shapes.count(r"encoder\.block\.(\d+)\."),
        num_heads=heads,
        relative_attention_num_buckets=shapes.size(f"{attention}.relative_attention_bias.weight"),
        feed_forward_proj="gated-gelu" if gated else "relu",
    )


def mmdit(shapes: Shapes, *, sample_size: int) -> MMDiT:
    """The transformer of Stable Diffusion 3."""
    width, patch = shapes.size("x_embedder.proj.weight"), shapes.size("x_embedder.proj.weight", 2)
    layers = shapes.count(r"joint_blocks\.(\d+)\.")
    return MMDiT(
        sample_size=sample_size,
        patch_size=patch,
        in_channels=shapes.size("x_embedder.proj.weight", 1),
        num_layers=layers,
        attention_head_dim=HEAD,
        num_attention_heads=shapes.heads(width),
        joint_attention_dim=shapes.size("context_embedder.weight", 1),
        caption_projection_dim=width,
        pooled_projection_dim=shapes.size("y_embedder.mlp.0.weight", 1),
        out_channels=shapes.size("final_layer.linear.weight") // patch**2,
        pos_embed_max_size=math.isqrt(shapes.size("pos_embed", 1)),
        dual_attention_layers=tuple(i for i in range(layers) if shapes.has(f"joint_blocks.{i}.x_block.attn2.")),
        qk_norm="rms_norm" if shapes.has("joint_blocks.0.x_block.attn.ln_q.") else None,
    )
