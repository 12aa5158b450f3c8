"""What every tensor is called: minltx's name -> the name in an official file, or in a diffusers folder."""

import re

OFFICIAL_DIT = [
    (r"^time_embedder\.", "adaln_single.emb.timestep_embedder."),
    (r"^time_modulation\.", "adaln_single.linear."), (r"^blocks\.", "transformer_blocks."),
    (r"^caption_projection\.0\.", "caption_projection.linear_1."),
    (r"^caption_projection\.2\.", "caption_projection.linear_2."), (r"\.to_out\.", ".to_out.0."),
    (r"\.ff\.linear_1\.", ".ff.net.0.proj."), (r"\.ff\.linear_2\.", ".ff.net.2.")]
DIFFUSERS_DIT = OFFICIAL_DIT + [
    (r"^patchify_proj\.", "proj_in."), (r"^adaln_single\.", "time_embed."),
    (r"\.([qk])_norm\.", r".norm_\1.")]
OFFICIAL_VAE = [
    (r"^latent_mean$", "per_channel_statistics.mean-of-means"),
    (r"^latent_std$", "per_channel_statistics.std-of-means"), (r"\.norm3\.", ".norm3.norm."),
    (r"time_embedder\.(linear_[12])\.", r"time_embedder.timestep_embedder.\1.")]
DIFFUSERS_VAE = [
    (r"^latent_(mean|std)$", r"latents_\1"), (r"\.res_blocks\.", ".resnets."),
    (r"\.conv_shortcut\.", ".conv_shortcut.conv."),
    (r"time_embedder\.(linear_[12])\.", r"time_embedder.timestep_embedder.\1."),
    (r"^decoder\.last_time_embedder\.", "decoder.time_embedder."),
    (r"^decoder\.last_scale_shift_table$", "decoder.scale_shift_table")]
UNUSED_STATISTICS = "vae.per_channel_statistics."     # official files have more of these than are used


def rename(name, rules):
    """One name through all the rules, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def official_names(model):
    """Name in a model that has a `dit` and a `vae` -> name in a single file."""
    names = {f"dit.{k}": "model.diffusion_model." + rename(k, OFFICIAL_DIT) for k in model.dit.state_dict()}
    return names | {f"vae.{k}": "vae." + rename(k, OFFICIAL_VAE) for k in model.vae.state_dict()}


def diffusers_dit_names(dit):
    """minltx name -> name in transformer/."""
    return {k: rename(k, DIFFUSERS_DIT) for k in dit.state_dict()}


def diffusers_vae_names(vae, blocks):
    """minltx name -> name in vae/; blocks says what each of the VAE's blocks is called there."""
    names = {}
    for name in vae.state_dict():
        block, rest = re.match(r"((?:\w+\.(?:down|up)_blocks\.\d+)?)(.*)", name).groups()
        names[name] = rename(blocks.get(block, block) + rest, DIFFUSERS_VAE)
    return names
