"""The moving average of the generator's weights, from which all images are drawn."""

import torch

from common import hardware
from common.data.labels import draw_labels


@torch.no_grad()
def update_ema(generator_ema, generator, images_seen, batch_size, half_life):
    """Move the averaged weights towards the trained ones, once a step.

    images_seen: in training so far; batch_size: images of this step; half_life: images after which
    a weight counts half, at least 0. It ramps up from a twentieth of images_seen, so that the
    random initial weights are soon forgotten (EDM, Karras et al. 2022, ramp-up ratio 0.05).
    """
    half_life = min(half_life, images_seen / 20)
    decay = 0.5 ** (batch_size / half_life) if half_life else 0.0
    averaged, trained = [*generator_ema.parameters()], [*generator.parameters()]
    torch._foreach_lerp_(averaged, trained, 1 - decay)  # on a GPU one launch for all of them


@torch.no_grad()
def update_bn(generator_ema, label_counts, seed, dtype):
    """Recompute the BatchNorm statistics of the averaged generator, on 640 of its own images.

    Those of the trained generator do not fit the averaged weights and make images too much alike
    (Izmailov et al. 2018, section 3.2; torch.optim.swa_utils.update_bn does the same from a
    DataLoader). label_counts: as count_labels returns; dtype: "float32" or "bfloat16".
    """
    random = torch.Generator().manual_seed(seed)
    latents = torch.randn(640, generator_ema.latent_dim, generator=random)
    labels = draw_labels(label_counts, len(latents), random)
    for layer in generator_ema.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over the batches
    device = next(generator_ema.parameters()).device
    generator_ema.train()
    with hardware.keep_random(device), hardware.autocast(device, dtype):
        for batch in zip(latents.split(64), labels.split(64), strict=True):
            generator_ema(*(tensor.to(device) for tensor in batch))
    generator_ema.eval()
