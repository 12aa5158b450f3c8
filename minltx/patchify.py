"""Trade space and time for channels, and back: only these four functions change resolution in LTX-Video.

Unusual for a video VAE: other models cut the latent into patches before the transformer. Here the pixels are
cut into patches before the *encoder*. So each voxel of the latent (one position in the grid of frames, rows
and columns) is one token of the transformer (SPEC 1.2). The layers inside the VAE change resolution in the
same way, in three dimensions. The two channel orders differ, as in the released model: patches count
(channel, column, row), the inner layers (channel, frame, row, column).
"""


def patchify(video, patch):
    """Fold every patch x patch square of pixels into channels.

    video (B, C, F, H, W) -> (B, C*patch*patch, F, H/patch, W/patch); the channel of (c, row r, column q) in a
    patch is c*patch*patch + q*patch + r: the column is the slow index (SPEC 1.2). Raises ValueError if H or W
    is not a multiple of patch.
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
    x = x.reshape(B, C // patch**2, patch, patch, F, H, W)            # (B, C/p^2, column, row, F, H/p, W/p)
    x = x.permute(0, 1, 4, 5, 3, 6, 2)                                # (B, C/p^2, F, H/p, row, W/p, column)
    return x.reshape(B, C // patch**2, F, H * patch, W * patch)


def space_to_depth(x, stride):
    """Fold every box of stride = (frames, rows, columns) voxels into channels, in the order (c, t, y, x).

    x (B, C, F, H, W) -> (B, C*st*sy*sx, F/st, H/sy, W/sx), see SPEC 1.7. Raises ValueError if a stride does
    not divide.
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
    x = x.reshape(B, C // (st * sy * sx), st, sy, sx, f, h, w)        # (B, C/box, t, y, x, f, h, w)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)                             # (B, C/box, f, t, h, y, w, x)
    return x.reshape(B, C // (st * sy * sx), f * st, h * sy, w * sx)
