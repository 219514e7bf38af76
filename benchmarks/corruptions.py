"""Test images as they could come from another machine: noise, blur, compression, another exposure.

The kinds are those of MedMNIST-C (Di Salvo, Doerrich and Ledig 2024) for chest X-rays, redone for
28x28 pixels with torchvision. The strengths are ours: the five severities of each kind were chosen
on the validation images of PneumoniaMNIST so that the AUC of a plain network falls gradually.
"""

import io

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

SEVERITIES = 5
# Per severity. Noise: standard deviation or share, of a range of 1. Blur: sigma in pixels. JPEG:
# quality. Pixelate: pixels a side that are left. Brightness: added. Contrast: factor. Gamma: power.
STRENGTHS = {
    "gaussian noise": (0.06, 0.12, 0.20, 0.30, 0.42),
    "shot noise": (60, 20, 8, 4, 2),
    "impulse noise": (0.03, 0.08, 0.15, 0.25, 0.40),
    "speckle noise": (0.15, 0.30, 0.45, 0.65, 0.90),
    "blur": (1.0, 2.0, 3.0, 4.5, 7.0),
    "JPEG": (20, 10, 5, 3, 1),
    "pixelate": (14, 10, 7, 5, 4),
    "brighter": (0.10, 0.20, 0.30, 0.40, 0.50),
    "darker": (0.10, 0.20, 0.30, 0.40, 0.50),
    "more contrast": (1.5, 2.5, 4.0, 8.0, 16.0),
    "less contrast": (0.5, 0.3, 0.15, 0.08, 0.04),
    "gamma up": (1.3, 1.7, 2.2, 3.0, 4.0),
    "gamma down": (0.75, 0.55, 0.40, 0.28, 0.20),
}


def corrupt(images, kind, severity):
    """Return corrupted images. Shapes: uint8 (N, 1, 28, 28) -> the same; severity: 1 to 5."""
    strength = STRENGTHS[kind][severity - 1]
    random = torch.Generator().manual_seed(severity)
    x = images.float() / 255
    normal = torch.randn(x.shape, generator=random)
    if kind == "gaussian noise":
        x = x + strength * normal
    elif kind == "shot noise":  # of that many photons in a white pixel
        x = torch.poisson(x * strength, generator=random) / strength
    elif kind == "impulse noise":  # salt and pepper
        places = torch.rand(x.shape, generator=random)
        x = x.where(places > strength, 1.0).where(places > strength / 2, 0.0)
    elif kind == "speckle noise":
        x = x + x * strength * normal
    elif kind == "blur":
        x = transforms.gaussian_blur(x, kernel_size=27, sigma=strength)
    elif kind == "JPEG":
        return torch.stack([jpeg(image, strength) for image in images])
    elif kind == "pixelate":
        side = images.shape[-1]
        x = transforms.resize(transforms.resize(x, strength, antialias=True), side, 0)
    elif kind in ("brighter", "darker"):
        x = x + (strength if kind == "brighter" else -strength)
    elif kind in ("more contrast", "less contrast"):
        mean = x.mean((1, 2, 3), keepdim=True)
        x = (x - mean) * strength + mean
    else:
        x = x**strength
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


def jpeg(image, quality):
    """Return an image, uint8 (1, 28, 28), after compression."""
    file = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file)))[None]
