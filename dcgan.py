"""The two networks of a Deep Convolutional GAN for 28x28 images (Radford et al. 2015).

The generator draws an image from a latent vector; the discriminator says how real an image looks.
"""

from torch import nn


class Generator(nn.Module):
    """Latent vectors (N, latent_dim), drawn from N(0, 1) -> images (N, channels, 28, 28), [-1, 1].

    widths: feature maps at 7x7, 14x14 and 28x28 pixels.
    """

    def __init__(self, latent_dim=100, channels=1, widths=(128, 64, 32)):
        super().__init__()
        at7, at14, at28 = widths
        self.project = nn.Linear(latent_dim, at7 * 7 * 7, bias=False)
        # Kernel 4 is divisible by stride 2, so every pixel gets the same number of contributions
        # and no checkerboard appears (Odena et al. 2016).
        self.draw = nn.Sequential(
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

    def forward(self, latents):
        # Channels come last in memory, the order in which convolutions are fastest.
        features = self.project(latents).view(len(latents), 7, 7, -1).permute(0, 3, 1, 2)
        return self.draw(features)


class Discriminator(nn.Module):
    """Images (N, channels, 28, 28) in [-1, 1] -> logits (N,); above 0 means "looks real".

    widths: feature maps at 28x28, 14x14, 7x7 and 4x4 pixels.
    """

    def __init__(self, channels=1, widths=(32, 64, 128, 256)):
        super().__init__()
        at28, at14, at7, at4 = widths
        self.judge = nn.Sequential(
            # No stride here: at full resolution the fine detail of a forgery shows best. And no
            # BatchNorm: it would hide the brightness of a batch (Radford et al. 2015, section 3).
            nn.Conv2d(channels, at28, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(at28, at14, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(at14),
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
        self.apply(initialise)

    def forward(self, images):
        return self.judge(images).squeeze(1)


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
