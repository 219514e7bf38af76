"""The two networks of a Deep Convolutional GAN (Radford et al. 2015), for 28x28 pixels and more.

The generator draws an image from a latent vector; the discriminator says how real an image looks.
"""

import torch
from torch import nn
from torch.nn.functional import conv2d


def sides(size):
    """Return the heights and widths of the feature maps: size, its halves down to 4, rounded up.

    28, 14, 7, 4 and 64, 32, 16, 8, 4, in pixels; 128 goes on like 64, and 224 like 28.
    """
    halves = [size]
    while halves[-1] > 4:
        halves.append((halves[-1] + 1) // 2)
    return halves


class Generator(nn.Module):
    """Latents (N, latent_dim) from N(0, 1) -> images (N, channels, size, size) in [-1, 1].

    labels: the width of a label vector; 0 is the plain, unconditional DCGAN. A conditional one
    takes float label vectors (N, labels) of zeros and ones as well (Mirza and Osindero 2014).
    size: 28, 64, 128 or 224 pixels. widths: feature maps at an eighth, a quarter, a half of size
    and at size. The maps begin at 7 or 8 pixels: at a quarter of 28, where the first width is not
    used; at 128 and 224 the first counts for all coarser ones. bilinear: enlarge smoothly, then
    convolve, which leaves less grain than a transposed convolution (Odena et al. 2016) and takes
    less time; False is the plain DCGAN. Unless it is plain, one more 3x3 convolution refines the
    maps at a quarter of size from 64 pixels on. gain: what the last convolution is multiplied by.
    Adam moves all weights by about as much, and no BatchNorm undoes the scale of this layer: times
    4, it learns four times as fast; 1 is the plain DCGAN. jpeg: the quality, 10 to 100, at which
    sampling.draw compresses images, as real ones were; None: not.
    """

    def __init__(
        self,
        latent_dim=100,
        channels=1,
        labels=0,
        size=28,
        widths=(256, 128, 48, 16),
        bilinear=True,
        gain=4,
        jpeg=None,
    ):
        super().__init__()
        self.latent_dim, self.size, self.gain, self.jpeg = latent_dim, size, gain, jpeg
        self.start, *larger = sides(size)[-2::-1]
        width, *wider = [widths[0]] * (len(larger) - 3) + [*widths][-len(larger) - 1 :]
        self.embed = nn.Linear(labels, latent_dim, bias=False) if labels else None
        inputs = 2 * latent_dim if labels else latent_dim
        self.project = nn.Linear(inputs, width * self.start**2, bias=False)
        self.at_start = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.stages = [f"to_{side}" for side in larger]
        for side, outputs in zip(larger, wider, strict=True):
            if bilinear:
                enlarge = [
                    nn.Conv2d(width, outputs, 1, bias=False),
                    nn.Upsample(scale_factor=2, mode="bilinear"),
                    nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
                ]
            else:
                enlarge = [nn.ConvTranspose2d(width, outputs, 4, 2, padding=1, bias=False)]
            stage = nn.Sequential(*enlarge, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
            if bilinear and size > 28 and 4 * side == size:
                more = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
                stage.extend([more, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)])
            self.add_module(f"to_{side}", stage)
            width = outputs
        self.to_image = nn.Conv2d(width, channels, 3, padding=1)
        self.apply(initialise)
        if labels:
            # An embedded label has length 1, a tenth of a latent's. It is the same in every image
            # of the label: at equal length it is learned first, and all images of a label become
            # one (narrow networks on PneumoniaMNIST, after 600 steps: their standard deviation was
            # 0.2 times that of real ones, and 0.9 times with this).
            nn.init.normal_(self.embed.weight, 0.0, latent_dim**-0.5)

    def forward(self, latents, labels=None):
        if self.embed is not None:
            if labels is None:
                width = f"(N, {self.embed.in_features})"
                raise ValueError(f"a conditional generator: labels {width} of 0 and 1 are missing")
            latents = torch.cat([latents, self.embed(labels)], dim=1)
        # Channels come last in memory, the order in which convolutions are fastest.
        x = self.project(latents).view(len(latents), self.start, self.start, -1)
        x = self.at_start(x.permute(0, 3, 1, 2))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return torch.tanh(self.to_image(x) * self.gain)


class Discriminator(nn.Module):
    """Images (N, channels, size, size) in [-1, 1] -> logits (N, K); above 0: "looks real".

    The first column is the DCGAN's verdict on the whole image, which soon rests on fine detail. The
    others are those of a Texture at size and at each half of it that has at least 28 pixels, and of
    a smaller DCGAN's discriminator at a quarter of size and at each half of that, where it has 7 to
    16 pixels, which sees nothing but coarse shapes. The losses treat all alike. scales: four
    numbers for each Texture, as `texture_scales` returns them; with scales=() it is the plain
    DCGAN, and K is 1.

    labels: the width of a label vector; 0 is the plain, unconditional DCGAN. A conditional one
    takes label vectors (N, labels) as well and adds <V y, h>, of the labels y and the features h,
    to all logits but those of texture (projection, Miyato and Koyama 2018, equation 3).
    size: as for Generator, or 7, 8, 14 or 16. widths: feature maps at a half, a quarter and an
    eighth of size, at 28 pixels that is at 14, 7 and 4; the last counts for all coarser maps as
    well, down to 4x4. Of 7 or 8 pixels they begin at size.
    """

    def __init__(
        self,
        channels=1,
        labels=0,
        size=28,
        widths=(32, 64, 128),
        scales=(2.6, 0.12, 0.10, 0.033),  # of PneumoniaMNIST
    ):
        super().__init__()
        self.size, fold = size, 2 if size > 8 else 1
        half, *smaller = sides(size)[fold - 1 :]
        width, *wider = [*widths] + [widths[-1]] * (len(smaller) + 1 - len(widths))
        self.stages = [f"to_{side}" for side in (half, *smaller)]
        first = nn.Sequential(
            # The four pixels of a 2x2 square become four channels (Shi et al. 2016, in reverse).
            # With the 3x3 convolution this is one of 6x6 pixels and stride 2, in the form a CPU
            # computes fastest.
            nn.PixelUnshuffle(fold),
            # No BatchNorm on the first layer (Radford et al. 2015, section 3).
            nn.Conv2d(fold**2 * channels, width, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        )
        self.add_module(f"to_{half}", first)
        larger = half
        for side, outputs in zip(smaller, wider, strict=True):
            padding = 1 + larger % 2  # 7 pixels become 4, not 3
            stage = nn.Sequential(
                nn.Conv2d(width, outputs, 4, stride=2, padding=padding, bias=False),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.2, inplace=True),
            )
            self.add_module(f"to_{side}", stage)
            larger, width = side, outputs
        self.head = nn.Linear(width * 4 * 4, 1)
        self.embed = nn.Linear(labels, width * 4 * 4, bias=False) if labels else None
        levels = [scales[start : start + 4] for start in range(0, len(scales), 4)]
        self.textures = nn.ModuleList(
            Texture(channels, halvings, level) for halvings, level in enumerate(levels)
        )
        small = [side for side in sides(size) if 4 < side <= min(16, size // 4)] if scales else []
        self.small = nn.ModuleList(
            Discriminator(channels, labels, side, widths[:2], scales=()) for side in small
        )
        self.apply(initialise)

    def features(self, images):
        """Images (N, channels, size, size) -> activations of the last stage, at 4x4 (N, 2048)."""
        for stage in self.stages:
            images = getattr(self, stage)(images)
        # In the order of memory; the other one would slow down the backward pass on a CPU.
        return images.permute(0, 2, 3, 1).flatten(1)

    def forward(self, images, labels=None):
        features = self.features(images)
        logits = self.head(features)
        if self.embed is not None:
            logits = logits + (self.embed(labels) * features).sum(1, keepdim=True)
        verdicts = [logits, *(texture(images) for texture in self.textures)]
        for discriminator in self.small:
            while images.shape[-1] > discriminator.size:
                images = halve(images.float())  # bfloat16 would round each mean
            verdicts.append(discriminator(images, labels))
        return torch.cat(verdicts, dim=1)


class Texture(nn.Module):
    """Judges texture alone: images (N, channels, size, size) in [-1, 1] -> logits (N, 1).

    Nearly all of the variance of an X-ray is in smooth shapes, so a discriminator hardly sees the
    finest detail. This one sees the four 2x2 Haar bands, each divided by its scale, through 10x10
    pixels at a time, and averages its verdicts over all places, as a patch discriminator does
    (Isola et al. 2017). halvings: how often the size of the images is halved before, so that ribs
    fit into 10x10 pixels in large images, too.
    """

    def __init__(self, channels, halvings, scales, width=16):
        super().__init__()
        self.halvings, self.scales, self.square = halvings, scales, 2 ** (halvings + 1)
        # The kernels that give the bands, found by the bands of images with one white pixel; on the
        # CPU even where checkpoint.py builds on the meta device, which would import for a second.
        shape = channels, self.square, self.square
        pixels = torch.eye(channels * self.square**2, device="cpu").view(-1, *shape)
        kernels = self.bands(pixels).squeeze((2, 3)).T.reshape(-1, *shape)
        self.register_buffer("kernels", kernels, persistent=False)
        self.places = nn.Sequential(
            nn.Conv2d(4 * channels, width, 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, 1, 1),
        )

    def forward(self, images):
        side = images.shape[-1] - self.square
        if self.training:
            # The squares begin at any pixel, so that no grid of them shows. On a GPU it draws
            # where, and Python does not wait for it.
            corner = torch.randint(self.square, (2, 1), device=images.device)
            rows, columns = corner + torch.arange(side, device=images.device)
            images = images.index_select(2, rows).index_select(3, columns)
        else:
            images = images[:, :, :side, :side]
        # In float32: bfloat16 would round off the finest detail.
        images = images.float()
        bands = convolve(self, images) if images.is_cuda else self.bands(images)
        return self.places(bands).mean((2, 3))

    def bands(self, images):
        for _ in range(self.halvings):
            images = halve(images)
        return haar_bands(images, self.scales)


def quarters(images):
    """Images (N, C, S, S) -> the four pixels of each 2x2 square, (N, C, S / 2, S / 2) each."""
    return [images[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]


def halve(images):
    """Images (N, C, S, S) -> the means of their 2x2 squares, (N, C, S / 2, S / 2)."""
    a, b, c, d = quarters(images)
    return (a + b + c + d) / 4


def haar_bands(images, scales=(1, 1, 1, 1)):
    """Images (N, C, S, S) -> the bands of their 2x2 squares, (N, 4 C, S / 2, S / 2).

    scales: what the coarse, horizontal, vertical and diagonal differences are divided by.
    """
    a, b, c, d = quarters(images)
    bands = a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d
    return torch.cat([band / (2 * scale) for band, scale in zip(bands, scales, strict=True)], dim=1)


def convolve(texture, images):
    """Return the bands of a Texture in full float32, on a GPU by one launch instead of 40.

    On a CPU its own function is faster.
    """
    full = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with full, torch.autocast(images.device.type, enabled=False):
        return conv2d(images, texture.kernels, stride=texture.square)


def texture_scales(images):
    """Return what each Texture divides its bands by, four numbers each, for Discriminator.

    images: (N, C, S, S) in [-1, 1]. The first number is four times the standard deviation of the
    coarse band, so that smooth shapes count less; the others are those of the differences. There is
    a Texture at S pixels and at each half of it that has at least 28: one at 28, two at 64.
    """
    scales = []
    while images.shape[-1] >= 28:
        bands = haar_bands(images).unflatten(1, (4, -1))
        coarse, *differences = bands.std((0, 2, 3, 4)).clamp(min=1e-3).tolist()
        scales += [4 * coarse, *differences]
        images = halve(images)
    return tuple(round(scale, 4) for scale in scales)


def initialise(module):
    """Draw weights from N(0, 0.01) and BatchNorm scales from N(1, 0.02).

    Source: the PyTorch DCGAN example for BatchNorm. Radford et al. 2015, section 4, draw weights
    from N(0, 0.02). Adam moves a weight by up to its learning rate each step, however large it is,
    and BatchNorm undoes the scale of a layer: with weights half as large, a step changes twice as
    much, and the first epochs teach about twice as much (docs/RESULTS.md, "Smaller weights").
    """
    if isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        nn.init.normal_(module.weight, 0.0, 0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
