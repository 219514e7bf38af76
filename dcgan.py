"""The two networks of a Deep Convolutional GAN for 28x28 images (Radford et al. 2015).

The generator draws an image from a latent vector; the discriminator says how real an image looks.
"""

import torch
from torch import nn


class Generator(nn.Module):
    """Latents (N, latent_dim) from N(0, 1) -> images (N, channels, 28, 28) in [-1, 1].

    labels: the width of a label vector; 0 is the plain, unconditional DCGAN. A conditional one
    takes float label vectors (N, labels) of zeros and ones as well (Mirza and Osindero 2014).
    widths: feature maps at 4x4, 7x7, 14x14 and 28x28 pixels. bilinear: enlarge from 14 to 28 pixels
    smoothly, then convolve, which leaves less grain than a transposed convolution (Odena et al.
    2016); False is the plain DCGAN.
    """

    def __init__(
        self, latent_dim=100, channels=1, labels=0, widths=(256, 128, 64, 16), bilinear=True
    ):
        super().__init__()
        self.latent_dim = latent_dim
        at_4, at_7, at_14, at_28 = widths
        self.embed = nn.Linear(labels, latent_dim, bias=False) if labels else None
        inputs = 2 * latent_dim if labels else latent_dim
        self.project = nn.Linear(inputs, at_4 * 4 * 4, bias=False)
        self.at_4 = nn.Sequential(nn.BatchNorm2d(at_4), nn.ReLU(inplace=True))
        # Padding 2 and output padding 1, or 4 pixels would become 8.
        self.to_7 = nn.Sequential(
            nn.ConvTranspose2d(at_4, at_7, 4, stride=2, padding=2, output_padding=1, bias=False),
            nn.BatchNorm2d(at_7),
            nn.ReLU(inplace=True),
        )
        self.to_14 = nn.Sequential(
            nn.ConvTranspose2d(at_7, at_14, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(at_14),
            nn.ReLU(inplace=True),
        )
        if bilinear:
            enlarge = [
                nn.Conv2d(at_14, at_28, 1, bias=False),
                nn.Upsample(scale_factor=2, mode="bilinear"),
                nn.Conv2d(at_28, at_28, 3, padding=1, bias=False),
            ]
        else:
            enlarge = [nn.ConvTranspose2d(at_14, at_28, 4, stride=2, padding=1, bias=False)]
        self.to_28 = nn.Sequential(*enlarge, nn.BatchNorm2d(at_28), nn.ReLU(inplace=True))
        self.to_image = nn.Sequential(nn.Conv2d(at_28, channels, 3, padding=1), nn.Tanh())
        self.apply(initialise)
        if labels:
            # An embedded label has length 1, a tenth of a latent's. It is the same in every image
            # of the label: at equal length it is learned first, and all images of a label become
            # one (narrow networks on PneumoniaMNIST, after 600 steps: their standard deviation was
            # 0.2 times that of real ones, and 0.9 times with this).
            nn.init.normal_(self.embed.weight, 0.0, latent_dim**-0.5)

    def forward(self, latents, labels=None):
        if self.embed is not None:
            latents = torch.cat([latents, self.embed(labels)], dim=1)
        # Channels come last in memory, the order in which convolutions are fastest.
        x = self.project(latents).view(len(latents), 4, 4, -1).permute(0, 3, 1, 2)
        x = self.to_14(self.to_7(self.at_4(x)))
        return self.to_image(self.to_28(x))


class Discriminator(nn.Module):
    """Images (N, channels, 28, 28) in [-1, 1] -> logits (N, 2); above 0 means "looks real".

    The first column is the DCGAN's verdict on the whole image, the second that of Texture; with
    texture=False, the plain DCGAN, there is only the first. The losses treat both alike.

    labels: the width of a label vector; 0 is the plain, unconditional DCGAN. A conditional one
    takes label vectors (N, labels) as well and adds <V y, h>, of the labels y and the features h,
    to the first logit (projection, Miyato and Koyama 2018, equation 3).
    widths: feature maps at 14x14, 7x7 and 4x4 pixels.
    """

    def __init__(self, channels=1, labels=0, widths=(32, 64, 128), texture=True):
        super().__init__()
        at_14, at_7, at_4 = widths
        self.to_14 = nn.Sequential(
            # The four pixels of a 2x2 square become four channels (Shi et al. 2016, in reverse).
            # With the 3x3 convolution this is one of 6x6 pixels and stride 2, in the form a CPU
            # computes fastest.
            nn.PixelUnshuffle(2),
            # No BatchNorm on the first layer (Radford et al. 2015, section 3).
            nn.Conv2d(4 * channels, at_14, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.to_7 = nn.Sequential(
            nn.Conv2d(at_14, at_7, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(at_7),
            nn.LeakyReLU(0.2, inplace=True),
        )
        # Padding 2, or 7 pixels would become 3.
        self.to_4 = nn.Sequential(
            nn.Conv2d(at_7, at_4, 4, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(at_4),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.head = nn.Linear(at_4 * 4 * 4, 1)
        self.embed = nn.Linear(labels, at_4 * 4 * 4, bias=False) if labels else None
        self.texture = Texture(channels) if texture else None
        self.apply(initialise)

    def features(self, images):
        """Images (N, channels, 28, 28) in [-1, 1] -> activations of the last stage (N, 2048)."""
        return self.to_4(self.to_7(self.to_14(images))).flatten(1)

    def forward(self, images, labels=None):
        features = self.features(images)
        logits = self.head(features)
        if self.embed is not None:
            logits = logits + (self.embed(labels) * features).sum(1, keepdim=True)
        if self.texture is not None:
            logits = torch.cat([logits, self.texture(images)], dim=1)
        return logits


class Texture(nn.Module):
    """Judges texture alone: images (N, channels, 28, 28) in [-1, 1] -> logits (N, 1).

    Nearly all of the variance of an X-ray is in smooth shapes, so a discriminator hardly sees the
    finest detail. This one sees the four 2x2 Haar bands, each divided by its standard deviation (on
    PneumoniaMNIST; the coarse band by four times that), through 10x10 pixels at a time, and
    averages its verdicts over all places, as a patch discriminator does (Isola et al. 2017).
    """

    SCALES = (2.6, 0.12, 0.10, 0.033)  # coarse, horizontal, vertical and diagonal differences

    def __init__(self, channels, width=32):
        super().__init__()
        self.places = nn.Sequential(
            nn.Conv2d(4 * channels, width, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, images):
        # The 2x2 squares begin at any pixel in training, so that no grid of them shows.
        top, left = torch.randint(2, (2,)).tolist() if self.training else (0, 0)
        images = images[:, :, top : top + 26, left : left + 26]
        return self.places(haar_bands(images, self.SCALES)).mean((2, 3))


def haar_bands(images, scales):
    """Images (N, C, H, W) -> the bands of their 2x2 squares, each divided by its scale.

    Shapes: float (N, 4 C, H / 2, W / 2). Computed in float32: bfloat16 would round off the finest.
    """
    a, b, c, d = (images.float()[:, :, top::2, left::2] for top in (0, 1) for left in (0, 1))
    bands = a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d
    return torch.cat([band / (2 * scale) for band, scale in zip(bands, scales, strict=True)], dim=1)


def initialise(module):
    """Draw weights from N(0, 0.02) and BatchNorm scales from N(1, 0.02).

    Source: Radford et al. 2015, section 4, for the weights; the PyTorch DCGAN example for
    BatchNorm, on which the paper is silent.
    """
    if isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
