"""Draws images from a trained generator."""

import torch

from common import hardware
from common.data import jpeg
from common.data.dataset import to_pixels
from common.data.labels import draw_labels
from common.errors import UserError

CHUNK = 500  # images of 28x28 drawn at once; the last bit of a pixel may depend on it


def chunk(size):
    """Return how many images of this size are drawn at once: as many pixels as at 28x28."""
    return max(1, CHUNK * 28**2 // size**2)


@torch.inference_mode()
def draw(generator, latents, labels=None):
    """Draw one uint8 image (N, C, S, S) for each latent (N, latent_dim), `chunk` at a time.

    labels: float (N, K), a label vector for each latent, if the generator is conditional. If the
    images that it learned from had been compressed as JPEG, its images are compressed alike
    (jpeg.py). Raises UserError if the generator draws nan, which would be a black image.
    """
    inputs = [latents] if labels is None else [latents, labels]
    at_once = chunk(getattr(generator, "size", 28))
    drawn = []
    for batch in zip(*(tensor.split(at_once) for tensor in inputs), strict=True):
        images = generator(*batch)
        if not images.isfinite().all():
            raise UserError(
                "the generator draws images of nan: its weights are too large. Take another EPOCH, "
                "or train anew with a lower LEARNING_RATE"
            )
        pixels, quality = to_pixels(images), getattr(generator, "jpeg", None)
        drawn.append(jpeg.compress(pixels, quality) if quality else pixels)
    return torch.cat(drawn)


def sample(generator, label_counts, n, seed, dtype="float32"):
    """Draw n images, uint8 (n, C, S, S) on the CPU, from latents that the seed determines.

    label_counts: as count_labels returns; labels are as frequent together as there.
    dtype: of the convolutions, "float32" or "bfloat16".
    """
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, generator.latent_dim, generator=random)
    labels = draw_labels(label_counts, n, random)
    device = next(generator.parameters()).device
    with hardware.keep_random(device), hardware.autocast(device, dtype):
        return draw(generator, latents.to(device), labels.to(device)).cpu()
