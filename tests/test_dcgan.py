"""The two networks, and the moving average that draws the pictures."""

import copy

import pytest
import torch

import train_model
from common import dataset
from dcgan import Discriminator, Generator


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_become_images_and_images_become_logits(channels):
    images = Generator(latent_dim=100, channels=channels)(torch.randn(5, 100))
    assert images.shape == (5, channels, 28, 28)
    assert Discriminator(channels)(images).shape == (5,)


def test_every_pixel_is_within_minus_one_and_one():
    generator = Generator()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(30)  # far beyond what training reaches
    images = generator(torch.randn(64, 100))
    assert images.min() == -1 and images.max() == 1


def test_weights_are_drawn_as_radford_et_al_say():
    for network in (Generator(), Discriminator()):
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                assert parameter.mean().abs() < 0.005, name
                assert 0.015 < parameter.std() < 0.025, name
            elif name.endswith("weight"):  # BatchNorm
                assert 0.95 < parameter.mean() < 1.05, name
                assert 0.01 < parameter.std() < 0.03, name
            else:
                assert (parameter == 0).all(), name


def test_a_sample_does_not_depend_on_its_neighbours_in_the_batch():
    generator = Generator()
    generator(torch.randn(64, 100))  # fills BatchNorm's running statistics
    latents = torch.randn(16, 100)
    generator.eval()
    together = generator(latents)
    alone = torch.cat([generator(latent[None]) for latent in latents])
    torch.testing.assert_close(together, alone)
    generator.train()
    assert (generator(latents) - together).abs().max() > 0.01, "the test must be able to fail"


def test_the_moving_average_equals_one_computed_by_hand(monkeypatch):
    monkeypatch.setattr(train_model, "BATCH_SIZE", 64)
    monkeypatch.setattr(train_model, "EMA_HALF_LIFE", 128)
    generator = Generator(latent_dim=4)
    average = copy.deepcopy(generator)
    before = average.project.weight.clone()
    with torch.no_grad():
        generator.project.weight.add_(1.0)

    train_model.update_ema(average, generator, images_seen=10_000)
    # 64 images are half of the half-life: the old weights keep a share of 0.5 ** 0.5.
    torch.testing.assert_close(average.project.weight, before + 1 - 0.5**0.5)

    train_model.update_ema(average, generator, images_seen=1280)
    # Early on the half-life is a twentieth of the images seen, here 64: a share of 0.5.
    torch.testing.assert_close(average.project.weight, before + 1 - 0.5**1.5)


def test_the_averaged_generator_gets_the_statistics_of_its_own_images():
    torch.manual_seed(0)
    average = Generator().requires_grad_(False).eval()
    latents = torch.randn(640, 100)
    as_in_training = copy.deepcopy(average).train()(latents)
    assert (average(latents) - as_in_training).abs().mean() > 0.1
    for _ in range(2):  # the second time nothing is left of the first
        train_model.update_bn(average, {}, "float32")
        assert (average(latents) - as_in_training).abs().mean() < 0.01  # other latents than these
        assert not average.training


def test_no_half_life_means_no_averaging(monkeypatch):
    monkeypatch.setattr(train_model, "EMA_HALF_LIFE", 0)
    generator, average = Generator(), Generator()
    train_model.update_ema(average, generator, images_seen=64)
    assert torch.equal(average.project.weight, generator.project.weight)


def test_the_discriminators_gradients_come_from_its_own_loss_only(monkeypatch):
    parts = {"generator": Generator(), "discriminator": Discriminator()}
    for key, network in (("optimizer_g", "generator"), ("optimizer_d", "discriminator")):
        parts[key] = torch.optim.SGD(parts[network].parameters(), lr=0.0)
    real = torch.rand(64, 1, 28, 28) * 2 - 1
    torch.manual_seed(1)
    train_model.train_step(real, parts, "float32")
    found = [parameter.grad.clone() for parameter in parts["discriminator"].parameters()]

    torch.manual_seed(1)
    fake = parts["generator"](torch.randn(64, train_model.LATENT_DIM)).detach()
    d_real, d_fake = (parts["discriminator"](images).sigmoid() for images in (real, fake))
    loss = -d_real.log().mean() - (1 - d_fake).log().mean()
    expected = torch.autograd.grad(loss, list(parts["discriminator"].parameters()))
    torch.testing.assert_close(found, list(expected), rtol=1e-3, atol=1e-5)


def test_pixels_survive_the_way_into_the_network_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    images = dataset.to_network(pixels)
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(dataset.to_pixels(images), pixels)
