"""Metrics of synthetic images: fidelity and diversity.

Pure functions on tensors; those that draw random numbers take a seed and do not touch the global
RNG state. Features are the coordinates of the pixels along the principal components of the real
training images, not the activations of a network trained on photographs. So numbers are comparable
within this repository only: same data set, same size, same number of images, same k, same seed.
Features and distances are those of images averaged to 28 or 32 pixels a side (`shrink`).
"""

import torch
from torch.nn.functional import avg_pool2d

from common import spectrum
from common.spectrum import band_amplitudes, check_images, worst_band

CHUNK = 1024  # rows of a distance or kernel matrix held in memory at once
MIN_IMAGES = 20  # with fewer no metric is computed: five neighbours would be a quarter of them
K = 5  # nearest neighbours, as in Naeem et al. 2020


def split_real(images, n, seed=0):
    """Return two disjoint random sets of n real images each, or None if there are too few.

    The first is what synthetic images are compared with; the second, compared with the first, gives
    the real vs real reference. n is reduced to half of the images; too few is below MIN_IMAGES, or
    images that are all the same. Shapes: (N, ...) -> (n, ...), (n, ...). seed: a number, or a
    torch.Generator to draw from.
    """
    n = min(n, len(images) // 2)
    if n < MIN_IMAGES or all((part == images[0]).all() for part in images.split(CHUNK)):
        return None
    random = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=random)
    return images[order[:n]], images[order[n : 2 * n]]


def shrink(images):
    """Return images averaged over squares, so that 28 or 32 pixels a side are left.

    Formula: the mean of f x f pixels, f = S // 28; 64 and 128 pixels become 32, 224 become 28.
    Shapes: uint8 (N, C, S, S) -> float (N, C, S / f, S / f); at 28 pixels the images as they are.
    Range: [0, 255]; neither higher nor lower is better. Source: ours.
    """
    factor = images.shape[-1] // 28
    if factor == 1:
        return images
    parts = images.split(max(1, CHUNK // factor**2))  # as floats they take four times the memory
    return torch.cat([avg_pool2d(part.float(), factor) for part in parts])


def fit_features(real, components=64, at_most=10_000, seed=0):
    """Return (mean, basis), the principal components of the real training images.

    Formula: mean of x = pixels / 127.5 - 1 of images that `shrink` returns, and the leading
    eigenvectors of cov(x). Shapes: uint8 (N, C, S, S) -> double (D,), (D, K); D = 784 C or 1024 C,
    and K = components, or fewer if the data vary in fewer dimensions. Of more than at_most images a
    random subset is used. Range: mean in [-1, 1], basis orthonormal; neither higher nor lower is
    better. Source: Jolliffe 2002.
    """
    check_images(real)
    if len(real) > at_most:
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
        rows = order[:at_most].to(real.device).split(CHUNK)
        real = torch.cat([shrink(real[some]) for some in rows])
    mean, covariance = pixel_moments(shrink(real))
    variances, axes = torch.linalg.eigh(covariance)  # ascending
    dimensions = int((variances > 1e-10 * variances[-1]).sum())
    if dimensions == 0:
        raise ValueError("the real images are all the same: they have no principal components")
    return mean / 127.5 - 1, axes.flip(1)[:, : min(components, dimensions)].contiguous()


def features(images, mean, basis):
    """Return the coordinates of images along the principal components of the real ones.

    Formula: (x - mean) basis, x = pixels / 127.5 - 1. Shapes: uint8 (N, C, S, S), (D,), (D, K)
    -> float (N, K). Range: [-2 sqrt(D), 2 sqrt(D)]; neither higher nor lower is better. Source: as
    for `fit_features`.
    """
    check_images(images)
    images = shrink(images)
    if images[0].numel() != len(mean):
        raise ValueError(f"images of {len(mean)} values are needed, not of {images[0].numel()}")
    parts = [(x.double() / 127.5 - 1 - mean) @ basis for x in images.flatten(1).split(CHUNK)]
    return torch.cat(parts).float()


def frechet_distance(a, b):
    """Return the squared Frechet distance between Gaussians fitted to two sets of features.

    Formula: |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)), with means m and covariances A, B. Shapes:
    (N, K), (M, K) -> a number. Range: [0, inf). Lower is better; it falls as N and M grow. It
    depends on means and covariances only, so images from `gaussian_reference` score well. Source:
    Dowson and Landau 1982; Heusel et al. 2017 (FID: the same on Inception features).
    """
    check_features(a, b, at_least=2)
    a, b = a.double(), b.double()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    # With A = R^T R and B = S^T S, tr((A B)^(1/2)) is the sum of the singular values of R S^T.
    centred = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    r, s = (torch.linalg.qr(x, mode="r").R for x in centred)
    roots = torch.linalg.svdvals(r @ s.T).sum()
    return max(0.0, float(gap + r.square().sum() + s.square().sum() - 2 * roots))


def kernel_distance(a, b):
    """Return the unbiased estimate of the squared maximum mean discrepancy, with a cubic kernel.

    Formula: mean k(a_i, a_j) + mean k(b_i, b_j), both over i != j, - 2 mean k(a_i, b_j), with
    k(x, y) = (x.y / K + 1)^3. Shapes: (N, K), (M, K) -> a number. Range: [0, inf), and by chance a
    little below 0 if both sets have the same distribution. Lower is better; the expected value does
    not depend on N and M. Source: Binkowski et al. 2018 (KID: the same on Inception features).
    """
    check_features(a, b, at_least=2)
    a, b = a.double(), b.double()

    def kernel_sum(x, y):
        return sum(float((rows @ y.T / x.shape[1] + 1).pow(3).sum()) for rows in x.split(CHUNK))

    def mean_of_pairs(x):
        own = float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum())  # i = j would add a bias
        return (kernel_sum(x, x) - own) / (len(x) * (len(x) - 1))

    return mean_of_pairs(a) + mean_of_pairs(b) - 2 * kernel_sum(a, b) / (len(a) * len(b))


def neighbour_radii(x, k=K):
    """Return each image's distance to its k-th nearest neighbour, itself not counted.

    Formula: r_i = the k-th smallest |x_i - x_j|, j != i. Shapes: (N, K) -> (N,). Range: [0, inf);
    neither higher nor lower is better. Source: Kynkaanniemi et al. 2019.
    """
    check_features(x, x)
    if not 1 <= k < len(x):
        raise ValueError(f"{k} nearest neighbours need at least {k + 1} images, not {len(x)}")
    # The image itself is among its k + 1 nearest, at a distance of exactly 0.
    nearest = [distances(rows, x).topk(k + 1, largest=False)[0] for rows in x.split(CHUNK)]
    return torch.cat(nearest)[:, k]


def precision(real, synthetic, radii=None, k=K):
    """Return the share of synthetic images in the k-NN ball of at least one real one: fidelity.

    Formula: mean over j of [any i: |synthetic_j - real_i| <= r_i], r being `neighbour_radii` of the
    real features. Shapes: (N, K), (M, K), radii (N,) if already known -> a number. Range: [0, 1].
    Higher is better. Source: Kynkaanniemi et al. 2019.
    """
    return float(in_knn_ball(real, synthetic, radii, k).any(0).double().mean())


def recall(real, synthetic, k=K):
    """Return the share of real images in the k-NN ball of at least one synthetic one: diversity.

    Formula: mean over i of [any j: |real_i - synthetic_j| <= s_j], s being `neighbour_radii` of the
    synthetic features. Shapes: (N, K), (M, K) -> a number. Range: [0, 1]. Higher is better, but a
    synthetic outlier has a large ball and can raise recall; it cannot raise `coverage`. Source:
    Kynkaanniemi et al. 2019.
    """
    return precision(synthetic, real, k=k)


def density(real, synthetic, radii=None, k=K):
    """Return the mean number of real k-NN balls that a synthetic image lies in, over k: fidelity.

    Formula: mean over j of #{i: |synthetic_j - real_i| <= r_i} / k. Shapes: as for `precision`.
    Range: [0, N / k]. Higher is better up to about 1, the expected value for real images; above 1,
    synthetic images concentrate where real ones are dense. Source: Naeem et al. 2020.
    """
    return float(in_knn_ball(real, synthetic, radii, k).sum(0).double().mean()) / k


def coverage(real, synthetic, radii=None, k=K):
    """Return the share of real images with at least one synthetic one in their ball: diversity.

    Formula: mean over i of [any j: |synthetic_j - real_i| <= r_i]. Shapes: as for `precision`.
    Range: [0, 1]. Higher is better; it grows with M, and M = N real images have an expected value
    of about 1 - 2^-k. Source: Naeem et al. 2020.
    """
    return float(in_knn_ball(real, synthetic, radii, k).any(1).double().mean())


def gaussian_reference(images, n, seed=0):
    """Return n images from the Gaussian with the mean and covariance of the given images.

    Formula: m + V sqrt(w) z, z ~ N(0, 1), rounded and clipped to [0, 255]; m is the pixels' mean,
    V diag(w) V^T their covariance. Above 28 pixels that matrix is too large, and the same is drawn
    as m + sum over i of z_i (x_i - m) / sqrt(N - 1), of at most 5,000 random images x_i. Shapes:
    uint8 (N, C, S, S) -> uint8 (n, C, S, S). Not a metric but a baseline for all of them: a
    generator that is no better has learned no structure beyond means and covariances. Source: ours.
    """
    check_images(images)
    generator = torch.Generator().manual_seed(seed)
    if images.shape[-1] > 28:
        chosen = torch.randperm(len(images), generator=generator)[:5000].to(images.device)
        noise = torch.randn(n, len(chosen), generator=generator, dtype=torch.double)
        noise = (noise - noise.mean(1, keepdim=True)) / max(1, len(chosen) - 1) ** 0.5
        # Rows of noise with the mean 1 / N add the mean m, and leave it out of the differences.
        noise = (noise + 1 / len(chosen)).to(images.device)
        parts = zip(noise.split(256, dim=1), chosen.split(256), strict=True)
        pixels = sum(z @ images[some].flatten(1).double() for z, some in parts)
    else:
        mean, covariance = pixel_moments(images)
        variances, axes = torch.linalg.eigh(covariance)
        noise = torch.randn(n, len(mean), generator=generator, dtype=torch.double).to(mean.device)
        pixels = mean + noise * variances.clamp(min=0).sqrt() @ axes.T
    return pixels.round().clamp(0, 255).to(torch.uint8).view(n, *images.shape[1:])


def fit_reference(images, real, seed=0):
    """Return what `evaluate` compares synthetic images with.

    images: all training images, to fit the features on; real: the images to compare with. Both
    uint8 (N, C, S, S). Returns a dict of tensors and the number "n" of real images.
    """
    mean, basis = fit_features(images, seed=seed)
    amplitudes = band_amplitudes(real)
    real = features(real, mean, basis)
    reference = {"n": len(real), "mean": mean, "basis": basis, "features": real}
    return reference | {"radii": neighbour_radii(real), "amplitudes": amplitudes}


def evaluate(reference, synthetic):
    """Return the metrics that are cheap enough for every epoch, rounded to four digits.

    Formula, range, better direction and source: as for `precision`, `recall`, `coverage`,
    `frechet_distance`, `shared_detail` and `band_ratios`. reference: as `fit_reference` returns.
    Shapes: uint8 (n, C, S, S), with as many images as `fit_reference` got real ones ->
    {"precision": a, "recall": b, "coverage": c, "frechet": d, "shared": e, "vertical_06": f, ...}.
    """
    ours = features(synthetic, reference["mean"], reference["basis"])
    real = reference["features"]
    inside = in_knn_ball(real, ours, reference["radii"], K)  # for precision and coverage at once
    power = spectrum.power_spectrum(synthetic)  # for shared detail and the bands at once
    numbers = {
        "precision": float(inside.any(0).double().mean()),
        "recall": recall(real, ours),
        "coverage": float(inside.any(1).double().mean()),
        "frechet": frechet_distance(real, ours),
        "shared": spectrum.shared_detail(synthetic, power),
    } | spectrum.band_ratios(synthetic, reference["amplitudes"], power)
    return {name: round(number, 4) for name, number in numbers.items()}


def score(row):
    """Return by how much an epoch is good, from a row of its metrics, coverage among them.

    Formula: coverage times r, r the amplitude ratio furthest from 1, or 1 / r if it is above 1.
    Coverage alone prefers a blur. Range: [0, 1]. Higher is better. Source: ours.
    """
    _, ratio = worst_band(row) or (None, 1.0)
    return row["coverage"] * min(ratio, 1 / ratio)


def coverage_of_label(reference, real, synthetic, seed=0):
    """Return the coverage of the real images of one label by synthetic images of that label.

    Formula: as for `coverage`, on the features of `fit_reference`, of n random images of each set;
    real_vs_real is the coverage by n other real images; n = min(N // 2, M, that of the reference).
    Shapes: uint8 (N, C, S, S), (M, C, S, S) -> {"n": n, "coverage": a, "real_vs_real": b}; a
    and b are None where `split_real` finds too few images. Range: [0, 1]. Higher is better, and it
    grows with n: compare a label with its own real_vs_real, not with other labels. Source: ours,
    after Naeem et al. 2020.
    """
    n = min(len(real) // 2, len(synthetic), reference["n"])
    random = torch.Generator().manual_seed(seed)
    halves = split_real(real, n, random)
    if halves is None:
        return {"n": n, "coverage": None, "real_vs_real": None}
    synthetic = synthetic[torch.randperm(len(synthetic), generator=random)[:n]]
    mean, basis = reference["mean"], reference["basis"]
    real, other, ours = (features(images, mean, basis) for images in (*halves, synthetic))
    return {"n": n, "coverage": coverage(real, ours), "real_vs_real": coverage(real, other)}


def check_features(a, b, at_least=1):
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        shapes = f"{(*a.shape,)} and {(*b.shape,)}"
        raise ValueError(f"features (N, K) and (M, K) are needed, not {shapes}")
    if min(len(a), len(b)) < at_least:
        raise ValueError(f"at least {at_least} images are needed, not {len(a)} and {len(b)}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features are infinite or not numbers")


def distances(a, b):
    # |a|^2 + |b|^2 - 2 a.b is faster, but rounding errors hide small distances, those of copies.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def in_knn_ball(centres, points, radii, k):
    """Return whether each point lies in the k-NN ball of each centre.

    The k-NN ball of a centre reaches to its k-th nearest other centre. Formula: |points_j -
    centres_i| <= radii_i. Shapes: centres (N, K), points (M, K), radii (N,), or None to compute
    `neighbour_radii` of the centres -> bool (N, M).
    """
    check_features(centres, points)
    radii = neighbour_radii(centres, k) if radii is None else radii
    if radii.shape != centres.shape[:1]:
        raise ValueError(f"{len(centres)} radii are needed, not {(*radii.shape,)}")
    rows = zip(centres.split(CHUNK), radii[:, None].split(CHUNK), strict=True)
    return torch.cat([distances(some, points) <= limits for some, limits in rows])


def pixel_moments(images):
    """Return the mean and the covariance of pixels in grey levels: double (D,), (D, D)."""
    total, products = 0, 0
    for rows in images.flatten(1).split(CHUNK):
        x = rows.double()  # sums of integers are exact in double, in whatever order
        total, products = total + x.sum(0), products + x.T @ x
    mean = total / len(images)
    return mean, (products - len(images) * mean.outer(mean)) / max(1, len(images) - 1)
