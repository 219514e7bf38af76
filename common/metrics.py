"""How good synthetic images are: fidelity, diversity, fine detail and memorisation.

Pure functions on tensors; those that draw random numbers take a seed and leave the global random
state alone. Features are the pixels along the principal components of the real training images,
not the answers of a network that knows photographs. So every number is comparable within this
repository only: same data set, same number of images, same k, same seed.
"""

import torch
from torch.nn.functional import pad

CHUNK = 1024  # rows of a distance or kernel matrix that are in memory at once
MIN_IMAGES = 20  # below it no metric is computed
K = 5  # nearest neighbours, as in Naeem et al. 2020
PATCH = 7  # pixels, height and width, as in Karras et al. 2018
PATCHES = 16  # random positions per image and pyramid level
DIRECTIONS = 128  # random projections of the patches


def split_real(images, n, seed=0):
    """Return two disjoint random sets of n real images each: one to compare with, one to compare.

    n: at most half of the images. Shapes: uint8 (N, C, 28, 28) -> two of (n, C, 28, 28). None if n
    is below MIN_IMAGES or all images are the same: five neighbours among so few mean nothing.
    """
    n = min(n, len(images) // 2)
    if n < MIN_IMAGES or (images == images[0]).all():
        return None
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:n]], images[order[n : 2 * n]]


def fit_features(real, components=64, at_most=10_000, seed=0):
    """Return (mean, basis) of the real training images: what `features` projects onto.

    Formula: mean of x = pixels / 127.5 - 1, and the leading eigenvectors of cov(x). Shapes: uint8
    (N, C, 28, 28) -> double (D,), (D, K); D = 784 C, and K = components, or fewer if the data vary
    in fewer dimensions. Of more than at_most images a seeded subset is used. Range: mean in
    [-1, 1], basis orthonormal; no direction. Source: Jolliffe 2002, section 1.1.
    """
    check_images(real)
    if len(real) > at_most:
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
        real = real[order[:at_most].to(real.device)]
    mean, covariance = pixel_moments(real)
    variances, axes = torch.linalg.eigh(covariance)  # ascending
    dimensions = int((variances > 1e-10 * variances[-1]).sum())
    if dimensions == 0:
        raise ValueError("the real images are all the same: they have no principal components")
    return mean / 127.5 - 1, axes.flip(1)[:, : min(components, dimensions)].contiguous()


def features(images, mean, basis):
    """Return the coordinates of images along the principal components of the real ones.

    Formula: (x - mean) basis, x = pixels / 127.5 - 1. Shapes: uint8 (N, C, 28, 28), (D,), (D, K)
    -> float (N, K). Range: +-2 sqrt(D); no direction. Source: as for `fit_features`.
    """
    check_images(images)
    if images[0].numel() != len(mean):
        raise ValueError(f"images of {len(mean)} values wanted, not of {images[0].numel()}")
    parts = [(x.double() / 127.5 - 1 - mean) @ basis for x in images.flatten(1).split(CHUNK)]
    return torch.cat(parts).float()


def frechet_distance(a, b):
    """Return the squared Frechet distance between Gaussians fitted to two sets of features.

    Formula: |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)), with means m and covariances A, B. Shapes:
    (N, K), (M, K) -> a number. Range: [0, inf). Lower is better; it falls as N and M grow. It sees
    means and covariances only, so `gaussian_reference` scores well. Source: Dowson and Landau 1982;
    Heusel et al. 2017, section 4 (on a network's features).
    """
    check_features(a, b, at_least=2)
    a, b = a.double(), b.double()
    cov_a, cov_b = (x.T.cov().view(x.shape[1], x.shape[1]) for x in (a, b))
    # A B is not symmetric; sqrt(A) B sqrt(A) is, and has the same eigenvalues. With fewer images
    # than features some are zero, by rounding a little more or less: hence the clamps.
    variances, axes = torch.linalg.eigh(cov_a)
    root_a = axes * variances.clamp(min=0).sqrt() @ axes.T
    product = root_a @ cov_b @ root_a
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    spread = cov_a.trace() + cov_b.trace() - 2 * eigenvalues.clamp(min=0).sqrt().sum()
    return max(0.0, float((a.mean(0) - b.mean(0)).square().sum() + spread))


def kernel_distance(a, b):
    """Return the unbiased squared maximum mean discrepancy with a cubic polynomial kernel.

    Formula: mean k(a_i, a_j) + mean k(b_i, b_j), both over i != j, - 2 mean k(a_i, b_j), with
    k(x, y) = (x.y / K + 1)^3. Shapes: (N, K), (M, K) -> a number. Range: [0, inf), by chance a
    little below 0 where the sets agree. Lower is better, whatever N and M. Source: Binkowski et
    al. 2018, section 4.
    """
    check_features(a, b, at_least=2)
    a, b = a.double(), b.double()

    def kernel_sum(x, y):
        return sum(float((rows @ y.T / x.shape[1] + 1).pow(3).sum()) for rows in x.split(CHUNK))

    def mean_of_pairs(x):
        own = float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum())  # the bias, were it kept
        return (kernel_sum(x, x) - own) / (len(x) * (len(x) - 1))

    return mean_of_pairs(a) + mean_of_pairs(b) - 2 * kernel_sum(a, b) / (len(a) * len(b))


def neighbour_radii(x, k=K):
    """Return each image's distance to its k-th nearest neighbour, itself not counted.

    Formula: r_i = the k-th smallest |x_i - x_j|, j != i. Shapes: (N, K) -> (N,). Range: [0, inf);
    no direction. Source: Kynkaanniemi et al. 2019, section 2.
    """
    check_features(x, x)
    if not 1 <= k < len(x):
        raise ValueError(f"{k} nearest neighbours need at least {k + 1} images, here are {len(x)}")
    # Itself is always among the k + 1 nearest, at a distance of exactly 0.
    nearest = [distances(rows, x).topk(k + 1, largest=False)[0] for rows in x.split(CHUNK)]
    return torch.cat(nearest)[:, k]


def precision(real, synthetic, radii=None, k=K):
    """Return the share of synthetic images in the neighbourhood of any real one: fidelity.

    Formula: mean over j of [any i: |synthetic_j - real_i| <= r_i]. Shapes: (N, K), (M, K), and
    radii (N,) of the real features where already known -> a number. Range: [0, 1]. Higher is
    better. Source: Kynkaanniemi et al. 2019, section 2.
    """
    return float(in_knn_ball(real, synthetic, radii, k).any(0).double().mean())


def recall(real, synthetic, k=K):
    """Return the share of real images in the neighbourhood of any synthetic one: diversity.

    Formula: mean over i of [any j: |real_i - synthetic_j| <= s_j], s being the synthetic images'
    radii. Shapes: (N, K), (M, K) -> a number. Range: [0, 1]. Higher is better, but a far outlier
    with its huge s can raise it; coverage it cannot. Source: Kynkaanniemi et al. 2019, section 2.
    """
    return precision(synthetic, real, k=k)


def density(real, synthetic, radii=None, k=K):
    """Return the mean number of real neighbourhoods a synthetic image is in, over k: fidelity.

    Formula: mean over j of #{i: |synthetic_j - real_i| <= r_i} / k. Shapes: as for `precision`.
    Range: [0, N / k]. Higher is better up to about 1, where images like the real ones are; above,
    they crowd where real ones are dense. Source: Naeem et al. 2020, section 3.2.
    """
    return float(in_knn_ball(real, synthetic, radii, k).sum(0).double().mean()) / k


def coverage(real, synthetic, radii=None, k=K):
    """Return the share of real images with any synthetic one in their neighbourhood: diversity.

    Formula: mean over i of [any j: |synthetic_j - real_i| <= r_i]. Shapes: as for `precision`.
    Range: [0, 1]. Higher is better; as many images like the real ones reach about 1 - 2^-k, and it
    grows with M. Source: Naeem et al. 2020, section 3.2.
    """
    return float(in_knn_ball(real, synthetic, radii, k).any(1).double().mean())


def fine_detail(real, synthetic, seed=0):
    """Return the sliced Wasserstein distance of small patches at three scales, times 1000.

    Formula: mean over unit vectors u of mean |sort(P u) - sort(Q u)|, P and Q being 7x7 patches of
    one level of a Laplacian pyramid with mean 0 and variance 1 over each set and channel, 16 random
    ones per image (one at 7 pixels, where there is one place only). Scaling hides how strong the
    detail is, not its shape. Shapes: two uint8 (N, C, 28, 28) -> {28: a, 14: b, 7: c}, keyed by a
    level's pixels. Range: [0, inf). Lower is better, and halves of the real images give the floor
    for an N. Source: Karras et al. 2018, section 5.
    """
    check_images(real)
    check_images(synthetic)
    if real.shape != synthetic.shape:
        raise ValueError(f"equal N and C wanted, not {(*real.shape,)} and {(*synthetic.shape,)}")
    generator = torch.Generator().manual_seed(seed)
    levels = zip(pyramid(real), pyramid(synthetic), strict=True)
    return {a.shape[-1]: 1000 * sliced_wasserstein(a, b, generator) for a, b in levels}


def memorisation(synthetic, train, held_out):
    """Return how near synthetic images are to training images, against held-out real ones.

    Formula: d(x) = min over t in train of |x - t|, in grey levels over all pixels. ratio = median
    d(synthetic) / median d(held_out); share = that of synthetic images with a d of at most the 1st
    percentile of d(held_out). Shapes: uint8 (M, C, 28, 28), (N, ...), (H, ...) -> {"ratio": a,
    "share": b}. Range: [0, inf), [0, 1]. Ratio: nearer 1 is better, 0 means copies, and far above 1
    are images like no real ones. Share: lower is better, 0.01 is that of new real images. Source:
    ours, after the three-sample test of Meehan et al. 2020.
    """
    for images in (synthetic, train, held_out):
        check_images(images)
    return memorisation_scores(
        nearest_image(synthetic, train)[0], nearest_image(held_out, train)[0]
    )


def memorisation_scores(suspects, innocents):
    """Return what `memorisation` does, from distances already known.

    suspects, innocents: d(synthetic) and d(held_out), double (M,), (H,), as `nearest_image` gives.
    """
    usual = innocents.quantile(0.5)
    if usual == 0:
        raise ValueError("most held-out images are training images: they cannot tell what is usual")
    share = (suspects <= innocents.quantile(0.01)).double().mean()
    return {"ratio": float(suspects.quantile(0.5) / usual), "share": float(share)}


def nearest_image(images, train):
    """Return each image's distance to its nearest training image, and which one that is.

    Formula: min over t in train of |x - t|, in grey levels over all pixels. Shapes: uint8
    (M, C, 28, 28), (N, ...) -> double (M,), places in train (M,), the first of equals. Range:
    [0, 255 sqrt(D)]; no direction. Source: ours.
    """
    nearest, places = [], []
    for rows in images.flatten(1).double().split(CHUNK):
        best = torch.full((len(rows),), torch.inf, dtype=torch.double, device=rows.device)
        place = torch.zeros_like(best, dtype=torch.long)
        for start in range(0, len(train), 4 * CHUNK):
            y = train[start : start + 4 * CHUNK].flatten(1).double()
            near, where = square_distances(rows, y).min(1)
            place = torch.where(near < best, start + where, place)
            best = best.minimum(near)
        nearest.append(best.sqrt())
        places.append(place)
    return torch.cat(nearest), torch.cat(places)


def closest_pairs(images, count):
    """Return the distances within the closest pairs of images, and which images these are.

    Formula: the smallest |x_i - x_j|, i < j, in grey levels over all pixels, ascending. Shapes:
    uint8 (N, C, 28, 28), N > 1 -> double (P,), places (P, 2), P = count or all N (N - 1) / 2 pairs.
    Range: [0, 255 sqrt(D)]; no direction, but 0 is one image twice. Memory grows with N^2. Source:
    ours.
    """
    check_images(images)
    pixels = images.flatten(1).double()
    first, second = torch.triu_indices(len(images), len(images), offset=1, device=images.device)
    squares = square_distances(pixels, pixels)[first, second]
    closest, order = squares.topk(min(count, len(squares)), largest=False)
    return closest.sqrt(), torch.stack([first, second], 1)[order]


def gaussian_reference(images, n, seed=0):
    """Return n images with the mean and covariance of the given ones, and no other structure.

    Formula: m + V sqrt(w) z, z ~ N(0, 1), rounded and clipped to [0, 255]; m is the pixels' mean,
    V diag(w) V^T their covariance. Shapes: uint8 (N, C, 28, 28) -> uint8 (n, C, 28, 28). No metric
    but a mark for them: what a model learns beyond it is more than brightness. Source: ours.
    """
    check_images(images)
    mean, covariance = pixel_moments(images)
    variances, axes = torch.linalg.eigh(covariance)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, len(mean), generator=generator, dtype=torch.double).to(mean.device)
    pixels = mean + noise * variances.clamp(min=0).sqrt() @ axes.T
    return pixels.round().clamp(0, 255).to(torch.uint8).view(n, *images.shape[1:])


def fit_reference(images, real, seed=0):
    """Return what `evaluate` compares synthetic images with.

    images: all training images, for the features; real: those compared with. Both uint8
    (N, C, 28, 28). Returns a dict of tensors and the number "n" of real images.
    """
    mean, basis = fit_features(images, seed=seed)
    real = features(real, mean, basis)
    radii = neighbour_radii(real)
    return {"n": len(real), "mean": mean, "basis": basis, "features": real, "radii": radii}


def evaluate(reference, synthetic):
    """Return the cheap numbers of as many synthetic images as `fit_reference` got real ones.

    synthetic: uint8 (n, C, 28, 28). Returns {"precision", "recall", "coverage", "frechet": number},
    which see.
    """
    ours = features(synthetic, reference["mean"], reference["basis"])
    real = reference["features"]
    near = in_knn_ball(real, ours, reference["radii"], K)  # precision and coverage from one matrix
    numbers = {
        "precision": float(near.any(0).double().mean()),
        "recall": recall(real, ours),
        "coverage": float(near.any(1).double().mean()),
        "frechet": frechet_distance(real, ours),
    }
    return {name: round(number, 4) for name, number in numbers.items()}


def coverage_of_label(reference, real, synthetic, seed=0):
    """Return how well synthetic images of one label cover the real ones of that label.

    Formula: as for `coverage`, on the features of `fit_reference`, with n random images of each; the
    floor is that of n other real ones. n is the same for both, at most half of the real images, and
    no more than `fit_reference` got. Shapes: uint8 (N, C, 28, 28), (M, C, 28, 28) -> {"n": number,
    "coverage": a, "floor": b}; a and b are None if n is below 20, too few to say anything. Range:
    [0, 1]. Higher is better, and it grows with n: compare labels with their floors, not with each
    other. Source: ours, after Naeem et al. 2020, section 3.2.
    """
    n = min(len(real) // 2, len(synthetic), reference["n"])
    if n < 20:
        return {"n": n, "coverage": None, "floor": None}
    random = torch.Generator().manual_seed(seed)
    real = real[torch.randperm(len(real), generator=random)[: 2 * n]]
    synthetic = synthetic[torch.randperm(len(synthetic), generator=random)[:n]]
    mean, basis = reference["mean"], reference["basis"]
    one, other, ours = (features(x, mean, basis) for x in (real[:n], real[n:], synthetic))
    return {"n": n, "coverage": coverage(one, ours), "floor": coverage(one, other)}


def check_images(images):
    if images.dtype != torch.uint8 or images.shape[2:] != (28, 28) or len(images) == 0:
        got = f"{images.dtype} {(*images.shape,)}"
        raise ValueError(f"uint8 images (N, C, 28, 28) with N > 0 wanted, not {got}")


def check_features(a, b, at_least=1):
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features of one width wanted, not {(*a.shape,)} and {(*b.shape,)}")
    if min(len(a), len(b)) < at_least:
        raise ValueError(f"at least {at_least} images wanted, not {len(a)} and {len(b)}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("features are infinite or not numbers")


def distances(a, b):
    # The quick |a|^2 + |b|^2 - 2 a.b would lose the small distances, those of copies, to rounding.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def in_knn_ball(centres, points, radii, k):
    """Whether point j is in the ball around centre i: bool (N, M). Radii are computed if None."""
    check_features(centres, points)
    radii = neighbour_radii(centres, k) if radii is None else radii
    if radii.shape != centres.shape[:1]:
        raise ValueError(f"{len(centres)} radii wanted, not {(*radii.shape,)}")
    rows = zip(centres.split(CHUNK), radii[:, None].split(CHUNK), strict=True)
    return torch.cat([distances(some, points) <= limits for some, limits in rows])


def square_distances(a, b):
    """|a_i - b_j|^2 of pixels in double: sums of integers are exact, so the quick way is safe."""
    return a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T


def pixel_moments(images):
    """Mean and covariance of the pixels in grey levels: double (D,), (D, D)."""
    total, products = 0, 0
    for rows in images.flatten(1).split(CHUNK):
        x = rows.double()  # sums of integers are exact in double: their order does not matter
        total, products = total + x.sum(0), products + x.T @ x
    mean = total / len(images)
    return mean, (products - len(images) * mean.outer(mean)) / max(1, len(images) - 1)


def pyramid(images):
    """The detail that images have at 28 and at 14 pixels, and what is left at 7."""
    binomial = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device) / 16

    def smooth(x):  # conv2d is far slower for single channels
        x = pad(x, (2, 2, 2, 2), mode="reflect")
        return x.unfold(2, 5, 1).matmul(binomial).unfold(3, 5, 1).matmul(binomial)

    levels, image = [], images.float()
    while image.shape[-1] > PATCH:
        coarse = smooth(image)[:, :, ::2, ::2]
        spread = torch.zeros_like(image)
        spread[:, :, ::2, ::2] = 4 * coarse  # for the three pixels in four that stay empty
        levels.append(image - smooth(spread))
        image = coarse
    return [*levels, image]


def sliced_wasserstein(a, b, generator):
    """Sliced Wasserstein distance between scaled random patches of two stacks of images."""
    places = a.shape[-1] - PATCH + 1
    count = PATCHES if places > 1 else 1
    # The same places in both stacks: the distance of a stack to itself is then exactly 0.
    top, left = torch.randint(places, (2, len(a), count), generator=generator).to(a.device)
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
