"""Membership: can somebody with synthetic images, or a checkpoint, tell what it was trained on?

Attacks give every image a score, higher for a suspected member of the training set. Pure functions
on tensors; no test of this kind can show that images are safe, only that an attack fails.
"""

import torch

from common import metrics
from common.data.dataset import to_network


def membership_auc(synthetic, members, non_members):
    """Return how well the distance to the nearest synthetic image tells members from others.

    Formula: score s(x) = -min over g in synthetic of |x - g|, in grey levels over all pixels, then
    `separate`. Shapes: three sets of uint8 (N, C, S, S) -> a dict as there. A generator that
    copies gives an AUC near 1, one that draws from the same distribution and remembers nothing 0.5.
    The test images of a data set are often not quite like its training images, which moves the AUC
    without any memory: look at the controls as well, other training images in place of
    `synthetic`, and of `non_members`. Source: Chen et al. 2020, GAN-Leaks, section 4.1.
    """
    for images in (synthetic, members, non_members):
        metrics.check_images(images)
    nearest = [metrics.nearest_image(images, synthetic)[0] for images in (members, non_members)]
    return separate(*(-distances for distances in nearest))


def logit_auc(discriminator, members, non_members):
    """Return how well a discriminator's mean logit tells members from others.

    Members were shown to it as real in every epoch. discriminator: in eval mode; one that was
    trained with labels gets none (zeros). Shapes: two sets of uint8 (N, C, S, S) -> a dict as
    `separate` returns. Source: Hayes et al. 2019, LOGAN, section 4.1.
    """
    return separate(*(logits(discriminator, images) for images in (members, non_members)))


@torch.inference_mode()
def logits(discriminator, images):
    """Return the mean logits (N,) of uint8 images (N, C, S, S)."""
    embed = discriminator.embed
    n_labels = 0 if embed is None else embed.in_features
    batches = (to_network(batch) for batch in images.split(256))
    verdicts = (discriminator(x, torch.zeros(len(x), n_labels)).mean(1) for x in batches)
    return torch.cat([*verdicts])


def separate(members, non_members):
    """Return how well scores separate two sets: {"auc", "low", "high", "caught"}.

    Formula: auc = P(s(member) > s(other)) + P(equal) / 2, its 95 % interval low to high from the
    variances of both placements (DeLong et al. 1988, equation 5); caught = the share of members
    with a score above that of all but 1 % of the others (Carlini et al. 2022). Shapes: (M,), (N,),
    M and N at least 2. Range: [0, 1]; 0.5 and 0.01 are chance.
    """
    if min(len(members), len(non_members)) < 2:
        raise ValueError("two scores of each kind are needed at least")
    gaps = members.double()[:, None] - non_members.double()
    wins = (gaps > 0).double() + (gaps == 0).double() / 2
    auc = float(wins.mean())
    spread = [wins.mean(dim).var() / wins.shape[1 - dim] for dim in (0, 1)]
    half = 1.96 * float(sum(spread)) ** 0.5
    limit = non_members.sort(descending=True).values[len(non_members) // 100]
    caught = float((members > limit).double().mean())
    return {"auc": auc, "low": max(0, auc - half), "high": min(1, auc + half), "caught": caught}
