"""Three recipes for drawing 28x28 images: ours, and those of two well-known tutorials.

compare.py compares them; scaling.py measures ours.

Each function takes grey images, uint8 (N, 28, 28), a device, "cpu" or "cuda", and a seed, and
returns a dict: "step" trains on the next batch and returns a number that is finite as long as the
losses are; "draw" turns latents (n, latent_dim) into uint8 (n, 1, 28, 28), both NumPy; "batch" and
"latent_dim" are sizes; "weights" are the numbers of weights of generator and discriminator; "dtype"
is that of the convolutions.

Each makes one step on weights that are discarded, to build and compile everything, so that the
first call of "step" is as fast as later ones. Libraries are imported inside the functions, so that
TensorFlow and torch are not loaded into one process.
"""

import copy
import itertools
import os

import numpy as np


def ours(images, device, seed):
    """The recipe of train_model.py."""
    import torch

    import train_model
    from common import ema, hardware, sampling
    from common.data import dataset

    torch.manual_seed(seed)
    device = torch.device(device)
    dtype = hardware.choose_dtype("auto", device)
    batch, half_life = train_model.BATCH_SIZE, train_model.EMA_HALF_LIFE
    images = torch.from_numpy(images)[:, None]
    model = train_model.build(train_model.network_args(images, 0), device)
    networks = (model.generator, model.discriminator)
    no_labels = torch.zeros(batch, 0, device=device)
    images = images.to(device)

    def batches():
        while True:
            for chosen in torch.randperm(len(images), device=device).split(batch):
                if len(chosen) == batch:
                    yield dataset.to_network(images[chosen])

    def train(model, real, steps):
        train_model.set_learning_rate(model, steps)
        penalty = train_model.penalty_weight(steps - 1)
        statistics = train_model.train_step(real, no_labels, model, dtype, penalty)
        ema.update_ema(model.generator_ema, model.generator, steps * batch, batch, half_life)
        return statistics.sum()

    def draw(latents):
        ema.update_bn(model.generator_ema, {}, train_model.SEED, dtype)
        with hardware.autocast(device, dtype):
            latents = torch.from_numpy(latents).to(device)
            return sampling.draw(model.generator_ema, latents).cpu().numpy()

    real, counter = batches(), itertools.count(1)
    train(copy.deepcopy(model), next(real), 1)
    return {
        "step": lambda: train(model, next(real), next(counter)),
        "draw": draw,
        "batch": batch,
        "latent_dim": train_model.LATENT_DIM,
        "weights": [sum(p.numel() for p in net.parameters()) for net in networks],
        "dtype": dtype,
    }


def keras_tutorial(images, device, seed):
    """The recipe of TensorFlow's DCGAN tutorial. Raises UserError without the device."""
    os.environ["KERAS_BACKEND"] = "tensorflow"  # not that of the user's keras.json
    import tensorflow as tf
    from keras import Sequential, layers, losses, optimizers, utils

    from common.errors import UserError

    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif not tf.config.list_physical_devices("GPU"):
        raise UserError("DEVICE=cuda: TensorFlow finds no CUDA device; DEVICE=cpu compares on CPUs")
    utils.set_random_seed(seed)
    batch, latent_dim = 64, 100

    def up(width, **options):
        return layers.Conv2DTranspose(width, 5, padding="same", use_bias=False, **options)

    generator = Sequential(
        [
            layers.Input((latent_dim,)),
            layers.Dense(7 * 7 * 256, use_bias=False),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Reshape((7, 7, 256)),
            up(128),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            up(64, strides=2),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            up(1, strides=2, activation="tanh"),
        ]
    )
    discriminator = Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(64, 5, strides=2, padding="same"),
            layers.LeakyReLU(),
            layers.Dropout(0.3),
            layers.Conv2D(128, 5, strides=2, padding="same"),
            layers.LeakyReLU(),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    cross_entropy = losses.BinaryCrossentropy(from_logits=True)
    networks = (generator, discriminator)
    adams = [optimizers.Adam(1e-4) for _ in networks]
    for adam, network in zip(adams, networks, strict=True):
        adam.build(network.trainable_variables)

    @tf.function
    def train(real):
        latents = tf.random.normal((batch, latent_dim))
        with tf.GradientTape() as tape_g, tf.GradientTape() as tape_d:
            fake = generator(latents, training=True)
            logits_real = discriminator(real, training=True)
            logits_fake = discriminator(fake, training=True)
            loss_g = cross_entropy(tf.ones_like(logits_fake), logits_fake)
            loss_d = cross_entropy(tf.ones_like(logits_real), logits_real)
            loss_d += cross_entropy(tf.zeros_like(logits_fake), logits_fake)
        both = zip((tape_g, tape_d), (loss_g, loss_d), networks, adams, strict=True)
        for tape, loss, network, adam in both:
            gradients = tape.gradient(loss, network.trainable_variables)
            adam.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
        return loss_d + loss_g

    def draw(latents):
        starts = range(0, len(latents), 500)
        images = np.concatenate([generator(latents[i : i + 500], training=False) for i in starts])
        pixels = images * 127.5 + 127.5
        return pixels.round().clip(0, 255).astype(np.uint8).transpose(0, 3, 1, 2)

    pixels = tf.data.Dataset.from_tensor_slices((images[..., None].astype(np.float32) / 127.5) - 1)
    real = iter(pixels.shuffle(len(images)).batch(batch, drop_remainder=True).repeat())
    variables = [*generator.variables, *discriminator.variables]
    variables += [variable for adam in adams for variable in adam.variables]
    fresh = [variable.numpy() for variable in variables]
    train(next(real))
    for variable, value in zip(variables, fresh, strict=True):
        variable.assign(value)
    return {
        "step": lambda: train(next(real)),
        "draw": draw,
        "batch": batch,
        "latent_dim": latent_dim,
        "weights": [sum(int(tf.size(v)) for v in net.trainable_variables) for net in networks],
        "dtype": "float32",
    }


def pytorch_example(images, device, seed):
    """The recipe of PyTorch's DCGAN example, at 64x64 pixels; its samples are scaled to 28x28."""
    import torch
    from PIL import Image
    from torch import nn
    from torchvision import transforms

    from common.data import dataset

    torch.manual_seed(seed)
    batch, latent_dim = 64, 100

    def up(inputs, outputs, stride=2, padding=1):
        convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False)
        return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)

    def down(inputs, outputs):
        convolution = nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False)
        return convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, inplace=True)

    def initialise(module):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)

    generator = nn.Sequential(
        *up(latent_dim, 512, stride=1, padding=0),
        *up(512, 256),
        *up(256, 128),
        *up(128, 64),
        nn.ConvTranspose2d(64, 1, 4, 2, 1, bias=False),
        nn.Tanh(),
    )
    discriminator = nn.Sequential(
        nn.Conv2d(1, 64, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
        *down(64, 128),
        *down(128, 256),
        *down(256, 512),
        nn.Conv2d(512, 1, 4, bias=False),
        nn.Sigmoid(),
        nn.Flatten(0),
    )
    networks = [network.apply(initialise).to(device) for network in (generator, discriminator)]
    adams = [torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.5, 0.999)) for n in networks]
    cross_entropy = nn.BCELoss()
    ones, zeros = torch.ones(batch, device=device), torch.zeros(batch, device=device)

    def train(networks, adams, real):
        (generator, discriminator), (adam_g, adam_d) = networks, adams
        discriminator.zero_grad()
        loss_real = cross_entropy(discriminator(real.to(device)), ones)
        loss_real.backward()
        fake = generator(torch.randn(batch, latent_dim, 1, 1, device=device))
        loss_fake = cross_entropy(discriminator(fake.detach()), zeros)
        loss_fake.backward()
        adam_d.step()
        generator.zero_grad()
        loss_g = cross_entropy(discriminator(fake), ones)
        loss_g.backward()
        adam_g.step()
        return (loss_real + loss_fake + loss_g).detach()

    class Enlarged(torch.utils.data.Dataset):
        scale = transforms.Compose(
            [transforms.Resize(64), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
        )

        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            return self.scale(Image.fromarray(images[i]))

    loader = torch.utils.data.DataLoader(Enlarged(), batch, shuffle=True, drop_last=True)
    real = itertools.chain.from_iterable(itertools.repeat(loader))

    @torch.no_grad()
    def draw(latents):  # in training mode, as in the example
        latents = torch.from_numpy(latents)[:, :, None, None].to(device).split(batch)
        return dataset.to_pixels(torch.cat([shrink(generator(z)) for z in latents])).cpu().numpy()

    train(*copy.deepcopy((networks, adams)), next(real))
    return {
        "step": lambda: train(networks, adams, next(real)),
        "draw": draw,
        "batch": batch,
        "latent_dim": latent_dim,
        "weights": [sum(p.numel() for p in network.parameters()) for network in networks],
        "dtype": "float32",
    }


def shrink(images):
    """Scale images (N, 1, 64, 64) to 28x28, in the way that keeps most fine detail of real ones."""
    from torch.nn.functional import interpolate

    return interpolate(images, size=28, mode="bicubic", antialias=True)


def enlarge_and_shrink(images):
    """Scale uint8 images (N, 1, 28, 28) to 64x64 pixels and back, as pytorch_example does."""
    from torch.nn.functional import interpolate

    from common.data import dataset

    large = interpolate(dataset.to_network(images), size=64, mode="bilinear")
    return dataset.to_pixels(shrink(large))
