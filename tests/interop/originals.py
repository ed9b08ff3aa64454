"""Original files of Stable Diffusion, tiny or as published: names and shapes as the modules that trained them have.

Written from the structure of those modules: the U-Net and the autoencoder of latent diffusion, open_clip's encoder of
prompts, CLIP's in transformers, and the MM-DiT of Stable Diffusion 3. Values are drawn.
"""

import numpy as np


def dense(name, out, width, *kernel):
    return {f"{name}.weight": (out, width, *kernel), f"{name}.bias": (out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def pixel_transformer(name, width, depth, text, linear):
    kernel = () if linear else (1, 1)
    shapes = norm(f"{name}.norm", width) | dense(f"{name}.proj_in", width, width, *kernel)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, context in (("attn1", width), ("attn2", text)):
            shapes[f"{block}.{attention}.to_q.weight"] = (width, width)
            shapes |= {f"{block}.{attention}.{part}.weight": (width, context) for part in ("to_k", "to_v")}
            shapes |= dense(f"{block}.{attention}.to_out.0", width, width)
        shapes |= dense(f"{block}.ff.net.0.proj", 8 * width, width) | dense(f"{block}.ff.net.2", width, 4 * width)
        for n in (1, 2, 3):
            shapes |= norm(f"{block}.norm{n}", width)
    return shapes | dense(f"{name}.proj_out", width, width, *kernel)


def unet(*, model_channels, channel_mult, num_res_blocks, depths, context, linear, adm=None, channels=4):
    """`depths`: of the transformers of each level, 0 for none; those of the last attend in the middle, or one does."""
    embedding = 4 * model_channels

    def resnet(name, width, out):
        shapes = norm(f"{name}.in_layers.0", width) | dense(f"{name}.in_layers.2", out, width, 3, 3)
        shapes |= dense(f"{name}.emb_layers.1", out, embedding) | norm(f"{name}.out_layers.0", out)
        shapes |= dense(f"{name}.out_layers.3", out, out, 3, 3)
        return shapes if width == out else shapes | dense(f"{name}.skip_connection", out, width, 1, 1)

    shapes = dense("time_embed.0", embedding, model_channels) | dense("time_embed.2", embedding, embedding)
    if adm is not None:
        shapes |= dense("label_emb.0.0", embedding, adm) | dense("label_emb.0.2", embedding, embedding)
    shapes |= dense("input_blocks.0.0", model_channels, channels, 3, 3)
    width, skips, n = model_channels, [model_channels], 1
    for level, (mult, depth) in enumerate(zip(channel_mult, depths, strict=True)):
        for _ in range(num_res_blocks):
            shapes |= resnet(f"input_blocks.{n}.0", width, mult * model_channels)
            width = mult * model_channels
            if depth:
                shapes |= pixel_transformer(f"input_blocks.{n}.1", width, depth, context, linear)
            skips.append(width)
            n += 1
        if level < len(depths) - 1:
            shapes |= dense(f"input_blocks.{n}.0.op", width, width, 3, 3)
            skips.append(width)
            n += 1
    shapes |= resnet("middle_block.0", width, width) | resnet("middle_block.2", width, width)
    shapes |= pixel_transformer("middle_block.1", width, depths[-1] or 1, context, linear)
    n = 0
    for level in reversed(range(len(depths))):
        for i in range(num_res_blocks + 1):
            out, inside = channel_mult[level] * model_channels, 1
            shapes |= resnet(f"output_blocks.{n}.0", width + skips.pop(), out)
            width = out
            if depths[level]:
                shapes |= pixel_transformer(f"output_blocks.{n}.1", width, depths[level], context, linear)
                inside = 2
            if level and i == num_res_blocks:
                shapes |= dense(f"output_blocks.{n}.{inside}.conv", width, width, 3, 3)
            n += 1
    return shapes | norm("out.0", width) | dense("out.2", channels, width, 3, 3)


def autoencoder(*, ch, ch_mult, num_res_blocks, z_channels=4, quantized=True):
    widths = [ch * mult for mult in ch_mult]

    def resnet(name, width, out):
        shapes = norm(f"{name}.norm1", width) | dense(f"{name}.conv1", out, width, 3, 3)
        shapes |= norm(f"{name}.norm2", out) | dense(f"{name}.conv2", out, out, 3, 3)
        return shapes if width == out else shapes | dense(f"{name}.nin_shortcut", out, width, 1, 1)

    def middle(half):
        width = widths[-1]
        shapes = resnet(f"{half}.mid.block_1", width, width) | resnet(f"{half}.mid.block_2", width, width)
        shapes |= norm(f"{half}.mid.attn_1.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            shapes |= dense(f"{half}.mid.attn_1.{part}", width, width, 1, 1)
        return shapes

    shapes, width = dense("encoder.conv_in", ch, 3, 3, 3), ch
    for level, out in enumerate(widths):
        for i in range(num_res_blocks):
            shapes |= resnet(f"encoder.down.{level}.block.{i}", width, out)
            width = out
        if level < len(widths) - 1:
            shapes |= dense(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    shapes |= middle("encoder") | norm("encoder.norm_out", width)
    shapes |= dense("encoder.conv_out", 2 * z_channels, width, 3, 3)
    shapes |= dense("decoder.conv_in", width, z_channels, 3, 3) | middle("decoder")
    for level in reversed(range(len(widths))):
        for i in range(num_res_blocks + 1):
            shapes |= resnet(f"decoder.up.{level}.block.{i}", width, widths[level])
            width = widths[level]
        if level:
            shapes |= dense(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    shapes |= norm("decoder.norm_out", width) | dense("decoder.conv_out", 3, width, 3, 3)
    if quantized:
        shapes |= dense("quant_conv", 2 * z_channels, 2 * z_channels, 1, 1)
        shapes |= dense("post_quant_conv", z_channels, z_channels, 1, 1)
    return shapes


def clip(*, width, layers, vocabulary=99, length=16, inner=None, projection=False):
    inner = inner or 4 * width
    shapes = {
        "text_model.embeddings.token_embedding.weight": (vocabulary, width),
        "text_model.embeddings.position_embedding.weight": (length, width),
    }
    for i in range(layers):
        layer = f"text_model.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= dense(f"{layer}.self_attn.{part}", width, width)
        shapes |= norm(f"{layer}.layer_norm1", width) | norm(f"{layer}.layer_norm2", width)
        shapes |= dense(f"{layer}.mlp.fc1", inner, width) | dense(f"{layer}.mlp.fc2", width, inner)
    shapes |= norm("text_model.final_layer_norm", width)
    return shapes | ({"text_projection.weight": (width, width)} if projection else {})


def open_clip(*, width, layers, vocabulary=99, length=16, inner=None):
    inner = inner or 4 * width
    shapes = {
        "positional_embedding": (length, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "token_embedding.weight": (vocabulary, width),
    }
    for i in range(layers):
        block = f"transformer.resblocks.{i}"
        shapes |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= dense(f"{block}.attn.out_proj", width, width)
        shapes |= dense(f"{block}.mlp.c_fc", inner, width) | dense(f"{block}.mlp.c_proj", width, inner)
    return shapes | norm("ln_final", width)


def mmdit(*, width, layers, text, pooled, edge, channels=16, patch=2, qk_norm=False, dual=()):
    shapes = {"pos_embed": (1, edge * edge, width)} | dense("x_embedder.proj", width, channels, patch, patch)
    for name, arriving in (("t_embedder", 256), ("y_embedder", pooled)):
        shapes |= dense(f"{name}.mlp.0", width, arriving) | dense(f"{name}.mlp.2", width, width)
    shapes |= dense("context_embedder", width, text)
    for i in range(layers):
        last = i == layers - 1
        for way in ("context", "x"):
            block, image = f"joint_blocks.{i}.{way}_block", way == "x"
            for attention in ("attn", "attn2")[: 1 + (image and i in dual)]:
                shapes |= dense(f"{block}.{attention}.qkv", 3 * width, width)
                if qk_norm:
                    shapes |= {f"{block}.{attention}.{ln}.weight": (64,) for ln in ("ln_q", "ln_k")}
                if image or not last:
                    shapes |= dense(f"{block}.{attention}.proj", width, width)
            if image or not last:
                shapes |= dense(f"{block}.mlp.fc1", 4 * width, width) | dense(f"{block}.mlp.fc2", width, 4 * width)
            parts = (9 if i in dual else 6) if image else 2 if last else 6
            shapes |= dense(f"{block}.adaLN_modulation.1", parts * width, width)
    shapes |= dense("final_layer.adaLN_modulation.1", 2 * width, width)
    return shapes | dense("final_layer.linear", patch * patch * channels, width)


def t5(*, width, layers, heads=2, inner=48, vocabulary=60):
    shapes = {"shared.weight": (vocabulary, width)}
    for i in range(layers):
        block = f"encoder.block.{i}.layer"
        attention, wide = f"{block}.0.SelfAttention", f"{block}.1.DenseReluDense"
        shapes |= {f"{attention}.{part}.weight": (heads * 64, width) for part in "qkv"}
        shapes |= {f"{attention}.o.weight": (width, heads * 64), f"{wide}.wo.weight": (width, inner)}
        shapes |= {f"{wide}.{part}.weight": (inner, width) for part in ("wi_0", "wi_1")}
        shapes |= {f"{block}.{n}.layer_norm.weight": (width,) for n in (0, 1)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, heads)
    return shapes | {"encoder.final_layer_norm.weight": (width,)}


def under(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


# What training leaves in files: the noise schedule, a copy of the weights with names without dots, and its state.
LEFT = {
    "betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod logvar lvlb_weights "
    "log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance "
    "posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2 denoiser.sigmas": (1000,),
    "scale_factor model_ema.decay model_ema.num_updates first_stage_model.loss.logvar": (),
    "model_ema.diffusion_modeltime_embed0weight": (4, 4),
}
LEFT = {name: shape for names, shape in LEFT.items() for name in names.split()}
NETWORK, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_1, CLIP_2 = "cond_stage_model.transformer.", "cond_stage_model.model."
XL = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
CLIP_L, CLIP_G, T5 = (f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl"))
POSITIONS = f"{CLIP_1}text_model.embeddings.position_ids"
# Two levels, and three in XL; a transformer at the first, at both, at the last two.
UNETS = {
    "1": {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 2, "depths": (1, 0), "context": 128},
    "2": {"model_channels": 64, "channel_mult": (1, 2), "num_res_blocks": 1, "depths": (1, 1), "context": 128},
    "XL": {"model_channels": 64, "channel_mult": (1, 2, 2), "num_res_blocks": 1, "depths": (0, 1, 2), "context": 192},
}
LINEAR = {"1": False, "2": True, "XL": True}
SIZES = 6 * 256 + 128
MMDIT = {
    "width": 128,
    "layers": 3,
    "text": 32,
    "pooled": 192,
    "edge": 8,
    "channels": 4,
    "qk_norm": True,
    "dual": (0, 1),
}
VAES = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 2}


def unet_shapes(family):
    return under(NETWORK, unet(**UNETS[family], linear=LINEAR[family], adm=SIZES if family == "XL" else None))


def vae_shapes(family):
    return under(VAE, autoencoder(**VAES, quantized=family != "3"))


SHAPES = {
    "1": unet_shapes("1") | vae_shapes("1") | under(CLIP_1, clip(width=128, layers=2)) | {POSITIONS: (1, 16)},
    # One layer more than is read.
    "2": unet_shapes("2") | vae_shapes("2") | under(CLIP_2, open_clip(width=128, layers=24)),
    "XL": unet_shapes("XL")
    | vae_shapes("XL")
    | under(XL[0], clip(width=64, layers=2))
    | under(XL[1], open_clip(width=128, layers=3, inner=96)),
    "3": under(NETWORK, mmdit(**MMDIT))
    | vae_shapes("3")
    | under(CLIP_L, clip(width=64, layers=2))
    | under(CLIP_G, clip(width=128, layers=2, projection=True))
    | under(T5, t5(width=32, layers=2))
    | {f"text_encoders.{name}.logit_scale": () for name in ("clip_l", "clip_g")},
}


def drawn(shapes, seed=0):
    """Tensors [*shape], scaled so that activations neither grow nor vanish; what scales after a norm is about one."""
    rng = np.random.default_rng(seed)
    value = lambda shape: rng.normal(size=shape) / max(1.0, float(np.prod(shape[1:]))) ** 0.5
    tensors = {name: np.asarray(value(shape), np.float32) for name, shape in shapes.items()}
    scales = lambda name: name.endswith("weight") and tensors[name].ndim == 1
    return {name: np.asarray(scales(name) + 0.3 * t, np.float32) for name, t in tensors.items()}


def tensors_of(family):
    """What a file of a family holds, with what training left in it."""
    tensors = drawn(SHAPES[family] | LEFT)
    return tensors | ({POSITIONS: np.arange(16)[None]} if POSITIONS in tensors else {})
