"""Conditional DCGANs for benchmarks/low_data.py: grey 28x28 images and two classes."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train_model
from common import checkpoint, ema, sampling
from common.data import dataset

CLASSES = 2


def train(images, labels, steps, seed, dtype, begin_with=None):
    """Train a conditional DCGAN with the constants of train_model.py, at a constant learning rate.

    images: uint8 (N, 1, 28, 28); labels: (N,); begin_with: the checkpoint of an unconditional
    DCGAN, whose weights it has at first, or None. Returns the weights of the averaged generator.
    """
    torch.manual_seed(seed)
    args = train_model.network_args(1, CLASSES, images.shape[-1])
    model = train_model.build(args, torch.device("cpu"))
    vectors, batch, seen = F.one_hot(labels, CLASSES).float(), train_model.BATCH_SIZE, 0
    if begin_with:
        for name in ("generator", "discriminator", "generator_ema"):
            inherit(getattr(model, name), begin_with[name])
        seen = begin_with["step"] * batch
    for _ in range(steps):
        chosen = torch.randint(len(images), (batch,))
        train_model.train_step(dataset.to_network(images[chosen]), vectors[chosen], model, dtype)
        seen += batch
        half_life = train_model.EMA_HALF_LIFE
        ema.update_ema(model.generator_ema, model.generator, seen, batch, half_life)
    ema.update_bn(model.generator_ema, dataset.count_labels(vectors), seed, dtype)
    return model.generator_ema.state_dict()


@torch.no_grad()
def inherit(network, state):
    """Copy the weights of an unconditional network into a conditional one.

    What is new in it, the inputs for labels, begins with weights of 0.
    """
    for name, weights in network.state_dict().items():
        if name == "project.weight":  # (maps, latent and then label inputs)
            weights.zero_()
            weights = weights[:, : state[name].shape[1]]
        if name in state:
            weights.copy_(state[name])
        elif name == "embed.weight" and not hasattr(network, "project"):
            weights.zero_()


def rebuild(state, path):
    """Return the generator of what train returned, in eval mode. path: for messages."""
    args = train_model.network_args(1, CLASSES, size=28)
    return checkpoint.rebuild_generator({"model_args": args, "generator_ema": state}, path)


def draw(generator, shares, n, seed):
    """Draw n images and their classes, uint8 (n, 1, 28, 28) and (n,); shares: of classes, (2,)."""
    random = torch.Generator().manual_seed(seed)
    classes = shares.multinomial(n, replacement=True, generator=random)
    latents = torch.randn(n, generator.latent_dim, generator=random)
    return sampling.draw(generator, latents, F.one_hot(classes, CLASSES).float()), classes
