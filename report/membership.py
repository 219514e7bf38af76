"""Copies and membership: do synthetic images, or a checkpoint, show what was trained on?

Distances to the nearest training image, in pixels; and attacks that give every image a score,
higher for a suspected member of the training set. Pure functions on tensors; no test of this kind
can show that images are safe, only that an attack fails.
"""

import torch

from common import metrics
from common.data.dataset import to_network


def memorisation(synthetic, train, held_out):
    """Return how close synthetic images are to training images, relative to held-out real ones.

    Formula: d(x) = min over t in train of |x - t|, as in `nearest_image`. ratio = median
    d(synthetic) / median d(held_out); share = that of synthetic images whose d is at most the 1st
    percentile of d(held_out). Shapes: uint8 (M, C, S, S), (N, ...), (H, ...) -> {"ratio": a,
    "share": b}. Range: [0, inf), [0, 1]. ratio: closer to 1 is better, 0 means copies, far above 1
    means images unlike any real one. share: lower is better, 0.01 is that of held-out images.
    Source: ours, after the three-sample test of Meehan et al. 2020.
    """
    for images in (synthetic, train, held_out):
        metrics.check_images(images)
    return memorisation_scores(*(nearest_image(x, train)[0] for x in (synthetic, held_out)))


def memorisation_scores(synthetic_distances, held_out_distances):
    """Return {"ratio": a, "share": b} as `memorisation` does, from distances already known.

    Distances to the nearest training image, as `nearest_image` returns: double (M,), (H,).
    """
    median = held_out_distances.quantile(0.5)
    if median == 0:
        raise ValueError("the ratio needs held-out images that are not training images")
    share = (synthetic_distances <= held_out_distances.quantile(0.01)).double().mean()
    return {"ratio": float(synthetic_distances.quantile(0.5) / median), "share": float(share)}


def nearest_image(images, train):
    """Return each image's distance to its nearest training image, and the index of that one.

    Formula: min over t in train of |x - t|, in grey levels over all pixels of images that `shrink`
    returns. Shapes: uint8 (M, C, S, S), (N, ...) -> double (M,), indices (M,), the lowest of
    equals. Range: [0, 255 sqrt(D)]; neither higher nor lower is better. Source: ours.
    """
    nearest, indices = [], []
    for rows in metrics.shrink(images).flatten(1).double().split(metrics.CHUNK):
        best = torch.full((len(rows),), torch.inf, dtype=torch.double, device=rows.device)
        index = torch.zeros_like(best, dtype=torch.long)
        for start in range(0, len(train), 4 * metrics.CHUNK):
            y = metrics.shrink(train[start : start + 4 * metrics.CHUNK]).flatten(1).double()
            minima, argmin = square_distances(rows, y).min(1)
            index = torch.where(minima < best, start + argmin, index)
            best = best.minimum(minima)
        nearest.append(best.sqrt())
        indices.append(index)
    return torch.cat(nearest), torch.cat(indices)


def closest_pairs(images, count):
    """Return the distances of the closest pairs of images, and the indices of these images.

    Formula: the smallest |x_i - x_j|, i < j, ascending, as in `nearest_image`. Shapes: uint8
    (N, C, S, S), N > 1 -> double (P,), indices (P, 2), P = count or all N (N - 1) / 2
    pairs. Range: [0, 255 sqrt(D)]; 0 means the same image twice. Memory grows with N^2. Source:
    ours.
    """
    metrics.check_images(images)
    pixels = metrics.shrink(images).flatten(1).double()
    first, second = torch.triu_indices(len(images), len(images), offset=1, device=images.device)
    squares = square_distances(pixels, pixels)[first, second]
    closest, order = squares.topk(min(count, len(squares)), largest=False)
    return closest.sqrt(), torch.stack([first, second], 1)[order]


def membership_auc(synthetic, members, non_members):
    """Return how well the distance to the nearest synthetic image tells members from others.

    Formula: score s(x) = -min over g in synthetic of |x - g|, in grey levels over all pixels, then
    `roc_auc`. Shapes: three sets of uint8 (N, C, S, S) -> a dict as there. A generator that
    copies gives an AUC near 1, one that draws from the same distribution and remembers nothing 0.5.
    The test images of a data set are often not quite like its training images, which moves the AUC
    without any memory: look at the controls as well, other training images in place of
    `synthetic`, and of `non_members`. Source: Chen et al. 2020, GAN-Leaks, section 4.1.
    """
    for images in (synthetic, members, non_members):
        metrics.check_images(images)
    nearest = [nearest_image(images, synthetic)[0] for images in (members, non_members)]
    return roc_auc(*(-distances for distances in nearest))


def logit_auc(discriminator, members, non_members):
    """Return how well a discriminator's mean logit tells members from others.

    Members were shown to it as real in every epoch. discriminator: in eval mode; one that was
    trained with labels gets none (zeros). Shapes: two sets of uint8 (N, C, S, S) -> a dict as
    `roc_auc` returns. Source: Hayes et al. 2019, LOGAN, section 4.1.
    """
    return roc_auc(*(logits(discriminator, images) for images in (members, non_members)))


@torch.inference_mode()
def logits(discriminator, images):
    """Return the mean logits (N,) of uint8 images (N, C, S, S)."""
    embed = discriminator.embed
    n_labels = 0 if embed is None else embed.in_features
    batches = (to_network(batch) for batch in images.split(256))
    verdicts = (discriminator(x, torch.zeros(len(x), n_labels)).mean(1) for x in batches)
    return torch.cat([*verdicts])


def roc_auc(positives, negatives):
    """Return how well scores separate two sets: {"auc", "low", "high", "tpr"}.

    Formula: auc = P(s(positive) > s(negative)) + P(equal) / 2, its 95 % interval low to high from
    the variances of both placements (DeLong et al. 1988, equation 5); tpr = the true positive rate
    at 1 % false positives, that of scores above all but 1 % of the negatives (Carlini et al. 2022).
    Shapes: (M,), (N,), M and N at least 2. Range: [0, 1]; 0.5 and 0.01 are chance.
    """
    if min(len(positives), len(negatives)) < 2:
        raise ValueError("two scores of each kind are needed at least")
    gaps = positives.double()[:, None] - negatives.double()
    wins = (gaps > 0).double() + (gaps == 0).double() / 2
    auc = float(wins.mean())
    spread = [wins.mean(dim).var() / wins.shape[1 - dim] for dim in (0, 1)]
    half = 1.96 * float(sum(spread)) ** 0.5
    limit = negatives.sort(descending=True).values[len(negatives) // 100]
    tpr = float((positives > limit).double().mean())
    return {"auc": auc, "low": max(0, auc - half), "high": min(1, auc + half), "tpr": tpr}


def square_distances(a, b):
    """Return |a_i - b_j|^2 of pixels in double, which holds these sums of integers exactly."""
    return a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
