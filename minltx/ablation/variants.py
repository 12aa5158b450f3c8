"""The built-in variants: what the paper compares with, each as a small change from outside the chapters."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from minltx.ablation.ideas import Idea, swap
from minltx.dit import Block, DiT
from minltx.flow import sample_t
from minltx.layers import Attention
from minltx.losses import Discriminator
from minltx.patchify import patchify, unpatchify
from minltx.pretrained.early import PlainDecoder
from minltx.rope import rope_tables, rotate
from minltx.vae import Decoder, Encoder


# --- Positions --------------------------------------------------------------------------------------------

class InverseDiT(DiT):
    """RoPE frequencies descend from pi/2, as in language models."""

    def rotation(self, coordinates):
        c = self.config
        cos, sin = rope_tables(coordinates, c.width, c.max_position, 1 / c.theta)
        return lambda x: rotate(x, cos, sin)


class UnrotatedDiT(DiT):
    """Queries and keys are not rotated, so attention does not know where and when a token is."""

    def rotation(self, coordinates):
        return lambda x: x


class Places:
    """Passes queries and keys unchanged; holds the embedding ([B,] N, D) of every token's coordinates."""

    def __init__(self, cos, sin):
        self.embedding = torch.cat([cos[..., ::2], sin[..., ::2]], dim=-1)

    def __call__(self, x):
        return x


class AbsoluteDiT(DiT):
    """RoPE's cosines and sines, to be added to the tokens."""

    def rotation(self, coordinates):
        c = self.config
        return Places(*rope_tables(coordinates, c.width, c.max_position, c.theta))


class FirstBlock(Block):
    """Adds the position embedding to the tokens, then does what a block does."""

    def forward(self, h, modulation, rotate, text, text_mask=None):
        return super().forward(h + rotate.embedding.to(h.dtype), modulation, rotate, text, text_mask)


class AbsolutePositions(Idea):
    """A sinusoidal embedding of the coordinates, added to the tokens once; nothing is rotated."""

    def change(self, model):
        model.dit.blocks[0].__class__ = FirstBlock
        return swap(model, DiT, AbsoluteDiT)


# --- Attention --------------------------------------------------------------------------------------------

class NoQKNorm(Idea):
    """Queries and keys of the transformer are not normalised."""

    def norm(self, width):
        return nn.Identity()

    def change(self, model):
        for module in model.dit.modules():
            if isinstance(module, Attention):
                width = module.to_q.out_features
                module.q_norm, module.k_norm = self.norm(width), self.norm(width)
        return model


class LayerQKNorm(NoQKNorm):
    """Queries and keys of the transformer are layer-normalised."""

    def norm(self, width):
        return nn.LayerNorm(width)


class MaskedAttention(Attention):
    """Self-attention in which `mask` (B or 1, 1, N, N) says which tokens a token attends to."""

    def forward(self, x, context=None, mask=None, rotate=None):
        q, k, v = rotate(self.q_norm(self.to_q(x))), rotate(self.k_norm(self.to_k(x))), self.to_v(x)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, N, D/h)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return self.to_out(out.transpose(1, 2).flatten(2))                                # (B, N, D)


class SpaceTimeDiT(DiT):
    """In even blocks a token attends to its own frame, in odd blocks to its own place in all frames."""

    def forward_tokens(self, tokens, t, coordinates, text, text_mask=None):
        N = coordinates.shape[-1]
        same = (coordinates[..., :, None] == coordinates[..., None, :]).reshape(-1, 3, N, N)
        same_frame, same_place = same[:, :1], same[:, 1:].all(dim=1, keepdim=True)        # (B or 1, 1, N, N)
        for i, block in enumerate(self.blocks):
            block.attn1.mask = same_place if i % 2 else same_frame
        return super().forward_tokens(tokens, t, coordinates, text, text_mask)


class SpaceTime(Idea):
    """Attention in space, then in time, instead of full attention."""

    def change(self, model):
        for block in model.dit.blocks:
            block.attn1.__class__ = MaskedAttention
        return swap(model, DiT, SpaceTimeDiT)


# --- Training times and frame rates -----------------------------------------------------------------------

class UniformTimes(Idea):
    """Training times are uniform between 0 and 1."""

    def draw_t(self, count, tokens, generator=None):
        return torch.rand(count, generator=generator)


class LogitNormalTimes(Idea):
    """Training times are logit-normal as usual, but not shifted towards noise."""

    UNSHIFTED = 1024 - 0.95 * (4096 - 1024) / (2.05 - 0.95)     # tokens for which flow.shift_mu is 0

    def draw_t(self, count, tokens, generator=None):
        return sample_t(count, self.UNSHIFTED, generator)


class FramesNotSeconds(Idea):
    """RoPE gets the same frame rate for all clips, so coordinates count frames, not seconds."""

    def seen_fps(self, fps, config):
        return config.fps


# --- The VAE ----------------------------------------------------------------------------------------------

class FoldedEncoder(Encoder):
    """Video -> latents of half the patch size, then 2x2 latent voxels become the channels of one."""

    def forward(self, video):
        return patchify(super().forward(video), 2)


class FoldedDecoder(Decoder):
    """The inverse of the folding, then a decoder with half the patch size."""

    def forward(self, latent, t, generator=None):
        return super().forward(unpatchify(latent, 2), t, generator)


class FoldedLatents(Idea):
    """Patches before the transformer instead of patches before the VAE, with latents of the same shape.

    Folding turns the log-variance of a voxel into four, one for each voxel of the finer grid.
    """

    stage = "vae"

    def finer(self, config):
        """The `VAEConfig` before folding: half the patch size, a quarter of the channels."""
        return replace(config, patch=config.patch // 2, latent_channels=config.latent_channels // 4)

    def encoder(self, config):
        return FoldedEncoder(self.finer(config))

    def decoder(self, config):
        return FoldedDecoder(self.finer(config))


class LogvarPerChannel(Idea):
    """The encoder predicts a log-variance for each channel of a voxel, not one for all of them."""

    stage = "vae"

    def encoder(self, config):
        return Encoder(replace(config, latent_channels=2 * config.latent_channels - 1))


class Unconditioned(Idea):
    """The decoder does not know how noisy its input is."""

    stage = "decoder"

    def decoder(self, config):
        return PlainDecoder(config)


class OrdinaryDiscriminator(Discriminator):
    """It sees a single video and says whether that is an original: margins of originals, then of outputs."""

    def __init__(self, width):
        super().__init__(width, channels=3)

    def forward(self, video, output, first):
        return torch.cat([self.layers(video), -self.layers(output)])


class OrdinaryGAN(Idea):
    """A GAN in which original and reconstruction are never seen together."""

    stage = "vae"

    def discriminator(self, width):
        return OrdinaryDiscriminator(width)
