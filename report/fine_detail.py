"""Fine detail: the distance between small patches of two sets of images, scale by scale.

Pure functions on tensors. Precision, recall, coverage and the Frechet distance do not see what it
measures, and common/spectrum.py sees the amplitude of detail, not its shape.
"""

import torch
from torch.nn.functional import pad

from common.spectrum import check_images

PATCH = 7  # height and width in pixels, as in Karras et al. 2018
PATCHES = 16  # random positions per image and pyramid level
DIRECTIONS = 128  # random projections of the patches


def distance(real, synthetic, seed=0):
    """Return the sliced Wasserstein distance of small patches at all scales, times 1000.

    Formula: mean over unit vectors u of mean |sort(P u) - sort(Q u)|, P and Q being 7x7 patches of
    one level of a Laplacian pyramid, scaled to mean 0 and variance 1 over each set and channel: 16
    random ones per image, and one at 7 pixels, where only one fits. The scaling removes the
    amplitude of the detail and keeps its shape. Shapes: two uint8 (N, C, S, S) -> {28: a, 14: b,
    7: c}, keyed by the pixels of a level; of 64 pixels {64: a, 32: b, 16: c, 8: d}. Range:
    [0, inf). Lower is better; it falls as N grows, so compare with real vs real at the same N.
    Source: Karras et al. 2018, section 5.
    """
    check_images(real)
    check_images(synthetic)
    if real.shape != synthetic.shape:
        shapes = f"{(*real.shape,)} and {(*synthetic.shape,)}"
        raise ValueError(f"two sets of one shape are needed, not {shapes}")
    generator = torch.Generator().manual_seed(seed)
    levels = zip(pyramid(real), pyramid(synthetic), strict=True)
    return {a.shape[-1]: 1000 * sliced_wasserstein(a, b, generator) for a, b in levels}


def pyramid(images):
    """Return the Laplacian pyramid of images: the detail at 28 and 14 pixels, the rest at 7.

    Of 64 and 128 pixels the rest is at 8, of 224 at 7.
    """
    binomial = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device) / 16

    def smooth(x):  # much faster than conv2d on single channels
        x = pad(x, (2, 2, 2, 2), mode="reflect")
        return x.unfold(2, 5, 1).matmul(binomial).unfold(3, 5, 1).matmul(binomial)

    levels, image = [], images.float()
    while image.shape[-1] >= 2 * PATCH:
        coarse = smooth(image)[:, :, ::2, ::2]
        upsampled = torch.zeros_like(image)
        upsampled[:, :, ::2, ::2] = 4 * coarse  # three pixels in four stay 0: keep the mean
        levels.append(image - smooth(upsampled))
        image = coarse
    return [*levels, image]


def sliced_wasserstein(a, b, generator):
    """Return the sliced Wasserstein distance between scaled random patches of two sets."""
    positions = a.shape[-1] - PATCH + 1
    count = PATCHES if positions > 1 else 1
    # The same positions in both sets: the distance of a set to itself is then exactly 0.
    top, left = torch.randint(positions, (2, len(a), count), generator=generator).to(a.device)
    image = torch.arange(len(a), device=a.device)[:, None]

    def patches(x):
        x = x.unfold(2, PATCH, 1).unfold(3, PATCH, 1)[image, :, top, left].flatten(0, 1)
        x = x - x.mean((0, 2, 3), keepdim=True)
        x = x / x.square().mean((0, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)
        return x.flatten(1).T

    a, b = patches(a), patches(b)
    directions = torch.randn(DIRECTIONS, len(a), generator=generator).to(a.device)
    directions = directions / directions.norm(dim=1, keepdim=True)
    gaps = [((u @ a).sort()[0] - (u @ b).sort()[0]).abs().mean(1) for u in directions.split(64)]
    return float(torch.cat(gaps).mean())
