"""The two networks of a Deep Convolutional GAN for 28x28 images (Radford et al. 2015).

The generator draws an image from a latent vector; the discriminator says how real an image looks.
"""

import torch
from torch import nn


class Generator(nn.Module):
    """Latent vectors (N, latent_dim), drawn from N(0, 1) -> images (N, channels, 28, 28), [-1, 1].

    labels: how many there are to draw by; with 0, the plain DCGAN, none are wanted. With more,
    label vectors (N, labels) of zeros and ones come with the latents (Mirza and Osindero 2014).
    widths: feature maps at 4x4, 7x7, 14x14 and 28x28 pixels.
    """

    def __init__(self, latent_dim=100, channels=1, labels=0, widths=(256, 128, 64, 16)):
        super().__init__()
        at4, at7, at14, at28 = widths
        self.embed = nn.Linear(labels, latent_dim, bias=False) if labels else None
        inputs = 2 * latent_dim if labels else latent_dim
        self.project = nn.Linear(inputs, at4 * 4 * 4, bias=False)
        # Kernel 4 is divisible by stride 2, so every pixel gets the same number of contributions
        # and no checkerboard appears (Odena et al. 2016).
        self.draw = nn.Sequential(
            nn.BatchNorm2d(at4),
            nn.ReLU(inplace=True),
            # The discriminator's last convolution in reverse, from 4 to 7 pixels.
            nn.ConvTranspose2d(at4, at7, 4, stride=2, padding=2, output_padding=1, bias=False),
            nn.BatchNorm2d(at7),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(at7, at14, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(at14),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(at14, at28, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(at28),
            nn.ReLU(inplace=True),
            nn.Conv2d(at28, channels, 3, padding=1),
            nn.Tanh(),
        )
        self.apply(initialise)
        if labels:
            # A label becomes a vector of length 1 or so, a tenth of a latent's. It is the same in
            # every image: at equal length it is learned first, and all images of a label become
            # one (narrow networks on PneumoniaMNIST, after 600 steps: their standard deviation was
            # 0.2 times that of real ones, and 0.9 times with this).
            nn.init.normal_(self.embed.weight, 0.0, latent_dim**-0.5)

    def forward(self, latents, labels=None):
        if self.embed is not None:
            latents = torch.cat([latents, self.embed(labels)], dim=1)
        # Channels come last in memory, the order in which convolutions are fastest.
        features = self.project(latents).view(len(latents), 4, 4, -1).permute(0, 3, 1, 2)
        return self.draw(features)


class Discriminator(nn.Module):
    """Images (N, channels, 28, 28) in [-1, 1] -> logits (N,); above 0 means "looks real".

    labels: how many there are; with 0, the plain DCGAN, none are wanted. With more, label vectors
    (N, labels) come with the images, and a logit says "looks real for these labels": <V y, h> of
    the labels y and the last features h is added to it (Miyato and Koyama 2018, equation 3).
    widths: feature maps at 14x14, 7x7 and 4x4 pixels. Few make a step fast; twice as many taught
    the generator no more diversity, and a stage at 28x28 pixels less (README, Results).
    """

    def __init__(self, channels=1, labels=0, widths=(32, 64, 128)):
        super().__init__()
        at14, at7, at4 = widths
        self.judge = nn.Sequential(
            # The four pixels of a 2x2 square become four channels (Shi et al. 2016, backwards). The
            # convolution then is one of 6x6 pixels with stride 2, in the form a CPU is fast at.
            nn.PixelUnshuffle(2),
            # No BatchNorm here: it would hide the brightness of a batch (Radford et al. 2015,
            # section 3).
            nn.Conv2d(4 * channels, at14, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(at14, at7, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(at7),
            nn.LeakyReLU(0.2, inplace=True),
            # Padding 2, or 7 pixels would become 3.
            nn.Conv2d(at7, at4, 4, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(at4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Flatten(),
            nn.Linear(at4 * 4 * 4, 1),
        )
        self.embed = nn.Linear(labels, at4 * 4 * 4, bias=False) if labels else None
        self.apply(initialise)

    def forward(self, images, labels=None):
        features = self.judge[:-1](images)
        logits = self.judge[-1](features).squeeze(1)
        if self.embed is not None:
            logits = logits + (self.embed(labels) * features).sum(1)
        return logits


def initialise(module):
    """Weights from N(0, 0.02), BatchNorm scales from N(1, 0.02) (Radford et al. 2015, section 4).

    For BatchNorm the paper is silent; N(1, 0.02) is what the PyTorch DCGAN example draws.
    """
    if isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
