"""Spatial frequencies: whether the detail of synthetic images is as strong as that of real ones.

Pure functions on tensors. What they measure neither precision, recall and coverage see nor the
Frechet distance, whose features leave out detail, nor the fine-detail distance, which scales it to
variance 1. A blur, the average of images that differ, ribs that are missing: all of them are here.
"""

import torch

# Lower edges of the bands, in cycles per pixel; the last one reaches to the corners, 0.71. Of 64
# pixels the first is a wave of 10 to 16 pixels, ribs are one of 5 to 8, and a checkerboard's is 2.
BANDS = (0.06, 0.10, 0.15, 0.22, 0.32)
RATIOS = [f"{waves}_{100 * low:02.0f}" for waves in ("vertical", "all") for low in BANDS]


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


def band_amplitudes(images, power=None):
    """Return the amplitude of images in each of BANDS: of vertical waves, and of all.

    Formula: the root of 1 / 12 + the mean of `power_spectrum` over a band; 1 / 12 is the power of
    rounding to whole grey levels, below which there is no detail. A wave is vertical, and its
    stripes are horizontal as ribs are, within 45 degrees. Shapes: uint8 (N, C, S, S), power (S, S)
    if already known -> double (2, 5). Range: [0.29, inf), in grey levels. Compare with that of real
    images: a ratio below 1 means detail that is missing, above 1 too much of it. Source: ours.
    """
    power = power_spectrum(images) if power is None else power
    down, across = (frequency.to(power.device) for frequency in frequencies(len(power)))
    band = torch.bucketize(down.hypot(across), torch.tensor(BANDS, device=power.device), right=True)
    rows = [
        torch.stack([power[chosen & (band == number)].mean() for number in range(1, 6)])
        for chosen in (down.abs() >= across.abs(), band > 0)
    ]
    return (torch.stack(rows) + 1 / 12).sqrt()


def band_ratios(synthetic, amplitudes, power=None):
    """Return the amplitude of synthetic images over that of real ones, per band.

    Formula: `band_amplitudes` of the synthetic images over that of the real ones. Shapes: uint8
    (N, C, S, S), double (2, 5), power as there -> {name: number}, the names as RATIOS. Range:
    (0, inf). Nearer to 1 is better: below it detail is missing, above it there is too much. Source:
    ours.
    """
    ratios = band_amplitudes(synthetic, power) / amplitudes
    return dict(zip(RATIOS, ratios.flatten().tolist(), strict=True))


def shared_detail(images, power=None):
    """Return the share of fine detail that is the same in all images, at the same place.

    Formula: s = the power of the mean image over that of the images (`power_spectrum`), of at least
    0.22 cycles per pixel; (N s - 1) / (N - 1), so that N independent images have 0 on average.
    Shapes: uint8 (N, C, S, S), N > 1, power (S, S) of all of them if already known -> a number.
    Range: 0 to 1, and by chance a little below 0.
    Real images have what their outlines and markers share; more means a pattern that the generator
    draws into every image. Source: ours.
    """
    down, across = frequencies(images.shape[-1])
    fine = down.hypot(across) >= BANDS[-2]
    power = power_spectrum(images) if power is None else power
    own = power_spectrum(images.mean(0, keepdim=True, dtype=torch.double))
    share = own[fine].sum().item() / max(power[fine].sum().item(), 1e-9)
    return (len(images) * share - 1) / (len(images) - 1)


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


def check_images(images):
    height, width = images.shape[2:] if images.ndim == 4 else (0, 0)
    if images.dtype != torch.uint8 or height != width or width < 28 or len(images) == 0:
        got = f"{images.dtype} {(*images.shape,)}"
        raise ValueError(f"uint8 images (N, C, S, S), N > 0 and S >= 28, are needed, not {got}")
