"""Spatial frequencies: whether the detail of synthetic images is as strong as that of real ones.

Pure functions on tensors. What they measure neither precision, recall and coverage see nor the
Frechet distance, whose features leave out detail, nor the fine-detail distance, which scales it to
variance 1. A blur, the average of images that differ, ribs that are missing: all of them are here.
"""

import torch
from torch.nn.functional import pad

# Lower edges of the bands, in cycles per pixel; the last one reaches to the corners, 0.71. Of 64
# pixels the first is a wave of 10 to 16 pixels, ribs are one of 5 to 8, and a checkerboard's is 2.
BANDS = (0.06, 0.10, 0.15, 0.22, 0.32)
RATIOS = [f"{waves}_{100 * low:02.0f}" for waves in ("vertical", "all") for low in BANDS]
PATCH = 7  # height and width in pixels, as in Karras et al. 2018
PATCHES = 16  # random positions per image and pyramid level
DIRECTIONS = 128  # random projections of the patches


def power_spectrum(images):
    """Return the power of images by spatial frequency, in grey levels squared.

    Formula: the mean of |DFT(w x)|^2 over images and channels; w is a Hann window of mean square 1,
    so that the image borders do not count as detail. Shapes: uint8 (N, C, S, S) -> double (S, S),
    in the order of torch.fft.fftfreq. Range: [0, inf); white noise of variance v has v everywhere.
    """
    side = images.shape[-1]
    window = torch.hann_window(side, dtype=torch.double, device=images.device)
    window = window.outer(window)
    window = window / window.square().mean().sqrt()
    power = 0
    for batch in images.split(1024 * 28**2 // side**2):
        waves = torch.fft.fft2(batch.double() * window, norm="ortho")
        power = power + waves.abs().square().sum((0, 1))
    return power / (len(images) * images.shape[1])


def amplitude_spectrum(images):
    """Return the amplitude of images by the radius of the spatial frequency, in grey levels.

    Formula: the root of the mean of `power_spectrum` over all (i, j) whose radius rounds to k,
    k = 0 ... K periods in S pixels. S / 2 is one period in two pixels along an axis, K the same
    along the diagonal: 14 and 20 at 28 pixels. Shapes: uint8 (N, C, S, S) -> double (K + 1,).
    Source: after Durall et al. 2020, section 3.
    """
    side = images.shape[-1]
    down, across = frequencies(side)
    radius = (side * down.hypot(across)).round().long().flatten().to(images.device)
    sums = radius.bincount(power_spectrum(images).flatten())
    return (sums / radius.bincount()).sqrt()


def band_amplitudes(images):
    """Return the amplitude of images in each of BANDS: of vertical waves, and of all.

    Formula: the root of 1 / 12 + the mean of `power_spectrum` over a band; 1 / 12 is the power of
    rounding to whole grey levels, below which there is no detail. A wave is vertical, and its
    stripes are horizontal as ribs are, within 45 degrees. Shapes: uint8 (N, C, S, S) -> double
    (2, 5). Range: [0.29, inf), in grey levels. Compare with that of real images: a ratio below 1
    means detail that is missing, above 1 too much of it. Source: ours.
    """
    power = power_spectrum(images)
    down, across = (frequency.to(power.device) for frequency in frequencies(len(power)))
    band = torch.bucketize(down.hypot(across), torch.tensor(BANDS, device=power.device), right=True)
    rows = [
        torch.stack([power[chosen & (band == number)].mean() for number in range(1, 6)])
        for chosen in (down.abs() >= across.abs(), band > 0)
    ]
    return (torch.stack(rows) + 1 / 12).sqrt()


def band_ratios(synthetic, amplitudes):
    """Return the amplitude of synthetic images over that of real ones, per band.

    Formula: `band_amplitudes` of the synthetic images over that of the real ones. Shapes: uint8
    (N, C, S, S), double (2, 5) -> {name: number}, the names as RATIOS. Range: (0, inf). Nearer to 1
    is better: below it detail is missing, above it there is too much. Source: ours.
    """
    ratios = band_amplitudes(synthetic) / amplitudes
    return dict(zip(RATIOS, ratios.flatten().tolist(), strict=True))


def band_text(low):
    """Return a band of BANDS as "0.15 to 0.22"; low: the last two digits of its name in RATIOS."""
    edges = [*BANDS, 0.71]
    number = [f"{100 * edge:02.0f}" for edge in edges].index(low)
    return f"{edges[number]:.2f} to {edges[number + 1]:.2f}"


def worst_band(row):
    """Return (name, ratio) of the band in a row of the history that is furthest from 1.

    Returns None if the row has no ratios.
    """
    ratios = [(name, row[name]) for name in RATIOS if name in row]
    return min(ratios, key=lambda each: min(each[1], 1 / each[1]), default=None)


def frequencies(side):
    """Return the vertical and the horizontal frequency of the cells of a spectrum, (S, S) each."""
    return torch.meshgrid(*[torch.fft.fftfreq(side, dtype=torch.double)] * 2, indexing="ij")


def fine_detail(real, synthetic, seed=0):
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


def check_images(images):
    height, width = images.shape[2:] if images.ndim == 4 else (0, 0)
    if images.dtype != torch.uint8 or height != width or width < 28 or len(images) == 0:
        got = f"{images.dtype} {(*images.shape,)}"
        raise ValueError(f"uint8 images (N, C, S, S), N > 0 and S >= 28, are needed, not {got}")
