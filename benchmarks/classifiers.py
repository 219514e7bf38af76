"""Classifiers of grey 28x28 images and how benchmarks/low_data.py trains them.

Images are uint8 (N, 1, 28, 28), labels class numbers (N,), unless a docstring says otherwise.
"""

import copy
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import hardware
from common.data import dataset

CPU = torch.device("cpu")


class SmallNetwork(nn.Module):
    """Images (N, 1, 28, 28) in [-1, 1] -> logits (N, classes), by five convolutions."""

    def __init__(self, classes):
        super().__init__()
        layers, last = [], 1
        for width, pool in ((32, False), (32, True), (64, False), (64, True), (128, False)):
            layers += [nn.Conv2d(last, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(inplace=True)] + ([nn.MaxPool2d(2)] if pool else [])
            last = width
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classify = nn.Linear(last, classes)

    def forward(self, images):
        return self.classify(self.layers(images))


class OnFeatures(nn.Module):
    """Images (N, 1, 28, 28) in [-1, 1] -> logits (N, classes), from a discriminator's features."""

    def __init__(self, discriminator, classes):
        super().__init__()
        self.discriminator = copy.deepcopy(discriminator).requires_grad_(True)
        self.classify = nn.Linear(discriminator.head.in_features, classes)

    def forward(self, images):
        return self.classify(self.discriminator.features(images))


def augment(images, strength):
    """Shift by up to 2 pixels, zoom, brighten and change the contrast by up to a tenth.

    All four are multiplied by strength. No flips, as the heart is on the left. Pixels from outside
    the image repeat its border. Shapes: float (N, 1, 28, 28) in [-1, 1] -> the same.
    """
    moved = zoom(images, 1 + 0.1 * strength * uniform(images), 2 * strength)
    return recolour(moved, 0.1 * strength)


def simclr_view(images):
    """A view for SimCLR: a crop of 30 to 100 % of the area, brighter or darker, of other contrast.

    After Chen et al. 2020, section 2 and appendix A, without flips, which would move the heart, and
    without colours and blur, of which there is little at 28x28 grey pixels.
    """
    side = (0.65 + 0.35 * uniform(images)).sqrt()
    return recolour(zoom(images, side, (1 - side) * images.shape[-1] / 2), 0.4)


def zoom(images, scale, shift):
    """Show a square of `scale` times the image's side, moved by up to `shift` pixels."""
    transform = torch.zeros(len(images), 2, 3)
    transform[:, 0, 0] = transform[:, 1, 1] = scale
    for axis in range(2):
        transform[:, axis, 2] = uniform(images) * shift * 2 / images.shape[-1]
    grid = F.affine_grid(transform, images.shape, align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def recolour(images, strength):
    """Add up to strength times the range [-1, 1] and multiply by up to 1 + strength."""
    shift, factor = (strength * uniform(images)[:, None, None, None] for _ in range(2))
    return ((images * (1 + factor)) + 2 * shift).clamp(-1, 1)


def uniform(images):
    """Return a random number in [-1, 1] for each image, (N,)."""
    return torch.rand(len(images)) * 2 - 1


def pick(images, labels, n):
    """Return n random images as floats in [-1, 1], and their labels."""
    chosen = torch.randint(len(images), (n,))
    return dataset.to_network(images[chosen]), labels[chosen]


def train(network, loss_of, steps, learning_rate, dtype):
    """Minimise loss_of(network) by Adam, the rate divided by 10 after 1/2 and 3/4 of the steps.

    loss_of draws its own batch. Returns the network in eval mode, as it is after the last step:
    choosing the best one takes many labelled images, and then labels would not be few.
    """
    network = network.to(memory_format=torch.channels_last).train()
    adam = torch.optim.Adam(network.parameters(), lr=learning_rate)
    drops = [steps // 2, steps * 3 // 4]
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, drops, gamma=0.1)

    def logits_of(images):
        with hardware.autocast(CPU, dtype):
            return network(images.contiguous(memory_format=torch.channels_last)).float()

    for _ in range(steps):
        loss = loss_of(logits_of)
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return network.eval()


def supervised(*sets, strength):
    """Return a loss for train: cross-entropy on (images, labels, images a step) of each set."""

    def loss_of(logits_of):
        batches = [pick(images, labels, n) for images, labels, n in sets]
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return F.cross_entropy(logits_of(augment(images, strength) if strength else images), labels)

    return loss_of


def consistent(images, labels, unlabelled, n, strength, sure=0.95):
    """Return a loss for train: supervised, and FixMatch's on unlabelled images.

    Where the network is sure of the class of an image augmented a little, it should find the same
    class in it augmented three times as much (Sohn et al. 2020, section 2.2).
    """

    def loss_of(logits_of):
        real, classes = pick(images, labels, n)
        plain = dataset.to_network(unlabelled[torch.randint(len(unlabelled), (n,))])
        weak, strong = augment(plain, strength), augment(plain, 3 * strength)
        logits = logits_of(torch.cat([augment(real, strength), weak, strong])).split(n)
        probability, found = logits[1].detach().softmax(dim=1).max(dim=1)
        agreement = F.cross_entropy(logits[2], found, reduction="none")
        return F.cross_entropy(logits[0], classes) + (agreement * (probability > sure)).mean()

    return loss_of


def simclr(discriminator, images, seconds, batch_size, dtype, temperature=0.5):
    """Train a discriminator's features by contrast, without labels, for some seconds of CPU time.

    Two views of an image should be more alike than those of different images: NT-Xent (Chen et al.
    2020, equation 1), through a projection to 128 numbers. Adam at 1e-3, falling along a cosine.
    Returns the discriminator and the number of steps. Leaves its other parts as they are.
    """
    project = nn.Sequential(
        nn.Linear(discriminator.head.in_features, 256), nn.ReLU(), nn.Linear(256, 128)
    )
    parameters = [*discriminator.parameters(), *project.parameters()]
    adam = torch.optim.Adam(parameters, lr=1e-3)
    steps, begin = 0, time.process_time()
    while (done := (time.process_time() - begin) / seconds) < 1:
        adam.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * done)) / 2
        batch = dataset.to_network(images[torch.randperm(len(images))[:batch_size]])
        views = torch.cat([simclr_view(batch), simclr_view(batch)])
        with hardware.autocast(CPU, dtype):
            features = discriminator.features(views.contiguous(memory_format=torch.channels_last))
            vectors = F.normalize(project(features).float(), dim=1)
        alike = (vectors @ vectors.T / temperature).fill_diagonal_(-math.inf)
        loss = F.cross_entropy(alike, torch.arange(len(views)).roll(len(batch)))
        adam.zero_grad()
        loss.backward()
        adam.step()
        steps += 1
    return discriminator, steps


def measure_bn(discriminator, images):
    """Recompute the BatchNorm statistics of a discriminator on real images alone.

    Those of training are a mixture of real and synthetic images. Returns it in eval mode.
    """
    discriminator.train()
    batches = [dataset.to_network(batch) for batch in images.split(256)]
    torch.optim.swa_utils.update_bn(batches, discriminator)
    return discriminator.eval()


@torch.inference_mode()
def features(discriminator, images):
    """Return a discriminator's features, float (N, 2048)."""
    batches = [discriminator.features(dataset.to_network(batch)) for batch in images.split(512)]
    return torch.cat(batches)


@torch.inference_mode()
def score(network, images):
    """Return the probability of class 1 among the classes 0 and 1, float32 array (N,)."""
    logits = [network(dataset.to_network(batch))[:, :2] for batch in images.split(512)]
    return torch.cat(logits).float().softmax(dim=1)[:, 1].numpy().astype(np.float32)
