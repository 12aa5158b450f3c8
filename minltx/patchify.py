"""Trade space and time for channels, and back: all that changes resolution in LTX-Video 0.9.5 is this.

Unusual for a video VAE: the 4x4 patchify that others put in front of the transformer stands in front of the
*encoder*, so a latent voxel already is a token (SPEC 1.2). The layers inside the VAE resample with
the same move in three dimensions. Mind the two channel orders: patches count (channel, column, row), the
inner shuffles (channel, frame, row, column).
"""


def patchify(video, patch):
    """Fold every patch x patch square of pixels into channels.

    video (B, C, F, H, W) -> (B, C*patch*patch, F, H/patch, W/patch); the channel of (c, row r, column q) in a
    patch is c*patch*patch + q*patch + r: the column is the slow index (SPEC 1.2). H and W must be multiples
    of patch, else ValueError.
    """
    B, C, F, H, W = video.shape
    if H % patch or W % patch:
        raise ValueError(f"height {H} and width {W} must be multiples of the patch size {patch}")
    x = video.reshape(B, C, F, H // patch, patch, W // patch, patch)  # (B, C, F, H/p, row, W/p, column)
    x = x.permute(0, 1, 6, 4, 2, 3, 5)                                # (B, C, column, row, F, H/p, W/p)
    return x.reshape(B, C * patch * patch, F, H // patch, W // patch)


def unpatchify(x, patch):
    """The exact inverse of `patchify`: (B, C*patch*patch, F, H/patch, W/patch) -> (B, C, F, H, W)."""
    B, C, F, H, W = x.shape
    x = x.reshape(B, C // patch**2, patch, patch, F, H, W)            # (B, C/pp, column, row, F, H/p, W/p)
    x = x.permute(0, 1, 4, 5, 3, 6, 2)                                # (B, C/pp, F, H/p, row, W/p, column)
    return x.reshape(B, C // patch**2, F, H * patch, W * patch)


def space_to_depth(x, stride):
    """Fold every (frames, rows, columns) = stride box of x into channels, the channel order (c, t, y, x).

    x (B, C, F, H, W) -> (B, C*st*sy*sx, F/st, H/sy, W/sx). ValueError if a stride does not divide (SPEC 1.7).
    """
    B, C, F, H, W = x.shape
    st, sy, sx = stride
    if F % st or H % sy or W % sx:
        raise ValueError(f"a grid of {F}x{H}x{W} cannot be cut into boxes of {st}x{sy}x{sx}")
    x = x.reshape(B, C, F // st, st, H // sy, sy, W // sx, sx)        # (B, C, F/st, t, H/sy, y, W/sx, x)
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6)                             # (B, C, t, y, x, F/st, H/sy, W/sx)
    return x.reshape(B, C * st * sy * sx, F // st, H // sy, W // sx)


def depth_to_space(x, stride):
    """Exact inverse of `space_to_depth`: (B, C*st*sy*sx, f, h, w) -> (B, C, f*st, h*sy, w*sx) (SPEC 1.6)."""
    B, C, f, h, w = x.shape
    st, sy, sx = stride
    x = x.reshape(B, C // (st * sy * sx), st, sy, sx, f, h, w)        # (B, C/P, t, y, x, f, h, w)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)                             # (B, C/P, f, t, h, y, w, x)
    return x.reshape(B, C // (st * sy * sx), f * st, h * sy, w * sx)
