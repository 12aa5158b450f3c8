"""What configs and public entries require: a wrong value raises ValueError, which says what fits.

The chapters call this once, at the entrance, where a mistake would give a wrong number without a word, or an
error deep inside; their inner functions stay plain. Values in a tensor are looked at on a CPU only: on a GPU
that would wait for all work that is still queued.
"""

import math

import torch


def require(ok, name, value, wanted):
    """Raises ValueError, with the value and what is wanted, if not ok."""
    if not ok:
        raise ValueError(f"{name} is {value!r:.100}: use {wanted}")


def whole(name, value, low, high=2**31):
    """Raises ValueError if the value is not a whole number from low to high."""
    require(type(value) is int and low <= value <= high, name, value, f"a whole number from {low} to {high}")


def number(name, value, low, high):
    """Raises ValueError if the value is not a number from low to high, or is NaN."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    require(known, name, value, f"a number from {low} to {high}")


def row(name, value, count, check, low, high):
    """Raises ValueError if the value is not a tuple or list of so many, each of which `check`, a function
    like `number`, accepts."""
    require(isinstance(value, (tuple, list)) and len(value) == count, name, value, f"{count} values")
    for one in value:
        check(f"a value of {name}", one, low, high)


def choice(name, value, known):
    """Raises ValueError if the value is not one of those known."""
    require(value in known, name, value, " or ".join(map(repr, known)))


# --- Configs ----------------------------------------------------------------------------------------------

def dit_config(c):
    """Raises ValueError for a wrong field of a DiTConfig, and if its heads do not divide the width."""
    for name in ("latent_channels", "width", "depth", "heads", "text_width"):
        whole(name, getattr(c, name), 1, 2**16)
    require(c.width % c.heads == 0, "heads", c.heads, f"a number that divides the width {c.width}")
    require(c.width % 2 == 0, "width", c.width, "an even number: RoPE rotates pairs of channels")
    row("stride", c.stride, 3, whole, 1, 4096)
    row("max_position", c.max_position, 3, number, 1e-6, 1e9)
    number("theta", c.theta, 1e-6, 1e9)
    choice("causal_time", c.causal_time, (True, False))


def vae_config(c):
    """Raises ValueError for a wrong field of a VAEConfig; unknown kinds of blocks, and strides that do not
    fit, are left to the VAE."""
    for name in ("latent_channels", "patch", "encoder_width", "decoder_width"):
        whole(name, getattr(c, name), 1, 2**16)
    for name in ("encoder_blocks", "decoder_blocks"):
        blocks = getattr(c, name)
        require(isinstance(blocks, tuple) and len(blocks) <= 100, name, blocks, "at most 100 blocks")
        for block in blocks:
            known = isinstance(block, tuple) and len(block) in (2, 3) and isinstance(block[0], str)
            require(known, f"a block of {name}", block, '("res", 2) or ("down", (2, 2, 2), 64), for instance')
            if len(block) == 3:
                row(f"a stride in {name}", block[1], 3, whole, 1, 2)
            whole(f"the last value of a block in {name}", block[-1], 1, 2**16)


# --- Tensors ----------------------------------------------------------------------------------------------

def shown(tensor):
    """Whether the values may be looked at: plain tensors on a CPU, outside of torch.compile."""
    return tensor.device.type == "cpu" and type(tensor) is torch.Tensor and not torch.compiler.is_compiling()


def shape(name, tensor, *wanted):
    """Raises ValueError if this is not a floating-point tensor of this shape, in which a tuple means one of
    several sizes, a letter any."""
    own = tuple(tensor.shape) if torch.is_tensor(tensor) else ()
    fits = len(own) == len(wanted) and all(
        isinstance(w, str) or n in (w if isinstance(w, tuple) else (w,)) for n, w in zip(own, wanted))
    text = ", ".join(" or ".join(map(str, w)) if isinstance(w, tuple) else str(w) for w in wanted)
    if not fits or not tensor.is_floating_point():
        kind = f"{tensor.dtype} of shape {own}" if torch.is_tensor(tensor) else type(tensor).__name__
        raise ValueError(f"{name} is {kind}: use floating point of shape ({text})")


def times(name, t):
    """Raises ValueError if t, a number or a tensor, has a time that is not between 0, data, and 1, noise."""
    if torch.is_tensor(t):
        outside = t[~((t >= 0) & (t <= 1))].tolist()[:1] if shown(t) else []
    else:
        outside = [] if 0 <= t <= 1 else [t]
    for value in outside:
        require(False, name, value, "0 (data) to 1 (noise)")


def encodable(size, stride):
    """Raises ValueError if a size (frames, height, width) is not multiples of the stride, and one frame
    more."""
    (frames, *sides), (st, *strides) = size, stride
    if frames < 1 or (frames - 1) % st:
        low = max(frames - 1, 0) // st * st + 1
        raise ValueError(f"{frames} frames cannot be encoded: use {st}k+1, such as {low} or {low + st}")
    for name, value, s in zip(("height", "width"), sides, strides):
        if value < s or value % s:
            low = max(value // s * s, s)
            raise ValueError(f"a {name} of {value} is not a multiple of {s}: use {low} or {low + s}")


def caption(text, mask, width, batch):
    """Raises ValueError if a caption's embeddings are not (B, L, width), or its mask, which may be None,
    is not (B, L) or keeps no word of a caption."""
    shape("text", text, batch, "L", width)
    if mask is not None:
        require(tuple(mask.shape) == tuple(text.shape[:2]), "the shape of the mask", tuple(mask.shape),
                f"{tuple(text.shape[:2])}, as the text has")
        kept = not shown(mask) or (mask != 0).any(dim=1).all()
        require(kept, "a row of the mask", 0, "1 for at least one word of every caption")


def dit_inputs(c, latent, t, text, mask):
    """Raises ValueError for wrong arguments of DiT.forward."""
    shape("latent", latent, "B", c.latent_channels, "f", "h", "w")
    B, _, *grid = latent.shape
    fits = torch.is_tensor(t) and tuple(t.shape) in ((B,), (1,), (B, *grid), (1, *grid))
    require(fits, "the shape of t", tuple(getattr(t, "shape", ())), f"({B},), or one time per token")
    times("t", t)
    caption(text, mask, c.text_width, B)


def decodable(c, latent, t):
    """Raises ValueError for wrong arguments of VideoVAE.decode; t is None for a decoder that ignores it."""
    shape("latent", latent, "B", c.latent_channels, "f", "h", "w")
    if t is not None:
        shape("t", t, (len(latent), 1))
        times("t", t)


def counted(weight):
    """Raises ValueError if all weights of a loss are 0."""
    require(not shown(weight) or bool((weight != 0).any()), "the weight of every token", 0,
            "a batch in which some are not given")


def schedule(times_):
    """Raises ValueError if the sampler's times do not fall from at most 1 down to at least 0; a single one
    takes no step."""
    falling = times_.ndim == 1 and len(times_) > 0 and bool((times_[:-1] > times_[1:]).all())
    require(falling, "the schedule", times_.tolist(), "times that fall from step to step")
    times("the schedule", times_.cpu())


def sampling(c, noise, text, null_text, s, conditions=(), generators=None):
    """Raises ValueError for wrong arguments of sampler.sample_latent; the config of another network may lack
    these fields."""
    shape("noise", noise, "B", getattr(c, "latent_channels", "C"), "f", "h", "w")
    schedule(s.schedule)
    for name in ("cfg", "stg"):
        number(name, getattr(s.guidance, name, 0.0), 0, 1000)
    for name, high in (("decode_t", 1), ("decode_noise", 1), ("condition_noise", 10)):
        number(name, getattr(s, name), 0, high)
    if s.guidance.cfg > 1 and null_text is None:
        raise ValueError(f"guidance of {s.guidance.cfg} needs null_text, the null caption's embedding: give "
                         "it, or set cfg to 1")
    for pair in (text, null_text):
        if pair is not None:
            caption(*pair, getattr(c, "text_width", "width"), len(noise))
    draws = s.stochastic or any(given.frame > 0 or s.condition_noise > 0 for given in conditions)
    if draws and len(generators or ()) != len(noise):
        raise ValueError(f"there are {len(generators or ())} generators for {len(noise)} samples: stochastic "
                         "steps, condition_noise and conditions after frame 0 draw noise from one each")


def mixable(latent, noise, noise_scale):
    """Raises ValueError if a latent cannot get as much noise as noise_scale says."""
    times("noise_scale", noise_scale)
    if noise_scale > 0:
        shape("noise", noise, *latent.shape)
