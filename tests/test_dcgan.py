"""The two networks, their losses, and the moving average that draws the pictures."""

import copy
import math

import pytest
import torch

import dcgan
import train_model
from common import sampling
from common.data import dataset
from common.ema import update_bn, update_ema
from common.schema import Model
from dcgan import Discriminator, Generator


def new_model(labels=0):
    """Both networks and optimisers as a user could build them, the same ones for a seed."""
    generator, discriminator = Generator(labels=labels), Discriminator(labels=labels)
    return Model(
        generator=generator,
        discriminator=discriminator,
        generator_ema=copy.deepcopy(generator),
        optimizer_g=torch.optim.SGD(generator.parameters(), lr=0.1),
        optimizer_d=torch.optim.SGD(discriminator.parameters(), lr=0.1),
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_become_images_and_images_become_logits(channels):
    images = Generator(latent_dim=100, channels=channels)(torch.randn(5, 100))
    assert images.shape == (5, channels, 28, 28)
    logits = Discriminator(channels)(images)  # of the whole image, its texture, 7 pixels
    assert logits.shape == (5, 3)
    assert Discriminator(channels, scales=())(images).shape == (5, 1)


def enlarge_weights(network):
    """Double the weights, as if they had been trained: new ones hardly change an image."""
    for parameter in network.parameters():
        parameter.data *= 2


def test_the_smaller_discriminators_see_coarse_shapes_alone():
    discriminator = Discriminator(size=64, scales=(1.0, 0.1, 0.1, 0.1) * 2).eval()
    enlarge_weights(discriminator)
    images = torch.rand(4, 1, 64, 64) - 0.5
    stripes = torch.tensor([0.3, -0.3]).repeat(32)  # the mean of two neighbours is 0
    changed = (discriminator(images + stripes) - discriminator(images)).abs().amax(0)
    assert changed[:2].min() > 1e-4, "the whole image's and its texture's"
    assert changed[2:].max() < 1e-6, "those at 32, 16 and 8 pixels"
    darker = (discriminator(images - 0.3) - discriminator(images)).abs().amax(0)
    assert darker[3:].min() > 1e-4


def test_every_pixel_is_within_minus_one_and_one():
    generator = Generator()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(30)  # far beyond what training reaches
    images = generator(torch.randn(64, 100))
    assert images.min() == -1 and images.max() == 1


def test_weights_are_half_as_large_as_those_of_radford_et_al():
    for network in (Generator(), Discriminator()):
        for name, parameter in network.named_parameters():
            if parameter.numel() < 1000 and parameter.ndim > 1:
                assert parameter.abs().max() < 0.05, name  # too few for a mean
            elif parameter.ndim > 1:
                assert parameter.mean().abs() < 0.0025, name
                assert 0.0075 < parameter.std() < 0.0125, name
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


def test_the_loss_is_that_of_goodfellow_et_al():
    real, fake = torch.tensor([0.9, 0.6]), torch.tensor([0.2, 0.3])  # D(x) and D(G(z))
    loss = train_model.discriminator_loss(real.logit(), fake.logit())
    by_hand = -(math.log(0.9) + math.log(0.6)) / 2 - (math.log(0.8) + math.log(0.7)) / 2
    assert loss.item() == pytest.approx(by_hand)


def test_in_a_step_the_discriminator_lowers_the_loss_and_the_generator_raises_it():
    real = torch.rand(64, 1, 28, 28) * 2 - 1
    torch.manual_seed(1)
    model = new_model()
    before, state = copy.deepcopy(model), torch.get_rng_state()
    train_model.train_step(real, torch.zeros(64, 0), model, "float32", penalty=2.0)

    # The same by hand: one graph from the latents to the loss.
    torch.set_rng_state(state)
    generator, discriminator = before.generator, before.discriminator
    images = real.clone().requires_grad_(True)
    fake = generator(torch.randn(64, 100))
    logits = discriminator(images)
    loss = train_model.discriminator_loss(logits, discriminator(fake))
    of_d = loss + 2.0 * train_model.gradient_penalty(images, logits)
    of_g = train_model.MATCHING * train_model.matching_loss(real, fake) - loss
    for network, trained, own in (
        (discriminator, model.discriminator, of_d),
        (generator, model.generator, of_g),
    ):
        old, new = [*network.parameters()], [*trained.parameters()]
        gradients = torch.autograd.grad(own, old, retain_graph=True)
        for weight, gradient, moved in zip(old, gradients, new, strict=True):
            torch.testing.assert_close(moved, weight - 0.1 * gradient, rtol=1e-4, atol=1e-6)
            assert not torch.equal(moved, weight)


@pytest.mark.parametrize("size", [28, 64, 128])
def test_the_gradient_penalty_is_that_of_mescheder_et_al_scaled_to_64_pixels(size):
    images = torch.zeros(2, 1, size, size, requires_grad=True)
    slopes = torch.tensor([1.0, 3.0])
    logits = (slopes * images.mean((1, 2, 3)))[:, None]  # a gradient of slope / size^2 at a pixel
    squared = [size**2 * (slope / 64**2) ** 2 for slope in (1.0, 3.0)]
    penalty = train_model.gradient_penalty(images, torch.cat([logits, 7 * logits], dim=1))
    assert penalty.item() == pytest.approx(sum(squared) / 2 / 2)


def test_a_gradient_penalty_flattens_the_discriminator_at_real_images():
    real = torch.rand(64, 1, 28, 28) * 2 - 1

    def slope(penalty):
        torch.manual_seed(1)
        model = train_model.build({"generator": {}, "discriminator": {}}, torch.device("cpu"))
        for _ in range(20):
            train_model.train_step(real, torch.zeros(64, 0), model, "float32", penalty)
        images = real.clone().requires_grad_(True)
        return train_model.gradient_penalty(images, model.discriminator(images)).item()

    assert slope(penalty=200.0) < 0.5 * slope(penalty=0.0)


@pytest.mark.parametrize(("size", "levels"), [(28, 1), (64, 2)])
def test_matching_finds_a_pattern_that_all_synthetic_images_share(size, levels):
    random = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 16, 1, size, size, generator=random)
    pattern = torch.randn(1, 1, size, size, generator=random)
    shares, image, pixels = 0, pattern, real
    for _ in range(levels):
        bands, own = (dcgan.haar_bands(x, (1, 1, 1, 1))[:, 1:] for x in (image, pixels))
        shares += (bands.square() / own.square().mean((0, 2, 3), keepdim=True)).mean().item()
        image, pixels = dcgan.halve(image), dcgan.halve(pixels)
    assert train_model.matching_loss(real, real + pattern).item() == pytest.approx(shares, rel=1e-3)
    assert abs(train_model.matching_loss(real, fake).item()) < 0.05, "a mean of 16 has 2 / 16"
    assert train_model.matching_loss(real[:1], fake[:1]) == 0  # a process with one image of a step
    assert train_model.matching_loss(0 * real, 0 * fake) == 0


def test_a_step_says_what_its_loss_and_verdicts_were():
    """Before the step moves a weight; the numbers of log.csv are means of these."""
    torch.manual_seed(0)
    model, seen = new_model(), []
    model.discriminator.register_forward_hook(lambda network, inputs, logits: seen.append(logits))
    real = torch.rand(64, 1, 28, 28) * 2 - 1
    loss, d_real, d_fake = train_model.train_step(real, torch.zeros(64, 0), model, "float32")
    assert loss == train_model.discriminator_loss(*seen)
    assert d_real == seen[0].sigmoid().mean() and d_fake == seen[1].sigmoid().mean()


def test_the_moving_average_equals_one_computed_by_hand():
    generator = Generator(latent_dim=4)
    average = copy.deepcopy(generator)
    before = average.project.weight.clone()
    with torch.no_grad():
        generator.project.weight.add_(1.0)

    update_ema(average, generator, images_seen=10_000, batch_size=64, half_life=128)
    # 64 images are half of the half-life: the old weights keep a share of 0.5 ** 0.5.
    torch.testing.assert_close(average.project.weight, before + 1 - 0.5**0.5)

    update_ema(average, generator, images_seen=1280, batch_size=64, half_life=128)
    # Early on the half-life is a twentieth of the images seen, here 64: a share of 0.5.
    torch.testing.assert_close(average.project.weight, before + 1 - 0.5**1.5)


def test_no_half_life_means_no_averaging():
    generator, average = Generator(), Generator()
    update_ema(average, generator, images_seen=64, batch_size=64, half_life=0)
    assert torch.equal(average.project.weight, generator.project.weight)


def test_the_averaged_generator_gets_the_statistics_of_its_own_images():
    torch.manual_seed(0)
    average = Generator().requires_grad_(False).eval()
    latents = torch.randn(640, 100)
    as_in_training = copy.deepcopy(average).train()(latents)
    assert (average(latents) - as_in_training).abs().mean() > 0.1
    for _ in range(2):  # the second time nothing is left of the first
        update_bn(average, {}, seed=0, dtype="float32")
        assert (average(latents) - as_in_training).abs().mean() < 0.01  # other latents than these
        assert not average.training


def test_measuring_changes_neither_the_random_state_nor_its_result():
    """A generator of one's own may have Dropout, noise or BatchNorm of another kind."""
    torch.manual_seed(0)
    average = Generator().requires_grad_(False).eval()
    average.to_image = torch.nn.Sequential(torch.nn.Dropout(0.5), average.to_image)
    flat = torch.nn.BatchNorm1d(average.project.out_features)
    average.project = torch.nn.Sequential(average.project, flat)
    before, means = torch.get_rng_state(), []
    for _ in range(2):
        update_bn(average, {}, seed=0, dtype="float32")
        means.append(flat.running_mean.clone())
    average.train()
    sampling.sample(average, {}, 10, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*means) and means[0].abs().sum() > 0


def test_pixels_survive_the_way_into_the_network_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    images = dataset.to_network(pixels)
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(dataset.to_pixels(images), pixels)


def test_the_learning_rate_falls_to_two_fifths():
    arguments = {"generator": {}, "discriminator": {}}
    model = train_model.build(arguments, torch.device("cpu"))
    rates = {1: 1e-4, 2000: 1e-4, 4000: 5e-5, 61300: 4e-5}
    for step, rate in rates.items():
        train_model.set_learning_rate(model, step)
        for optimizer in (model.optimizer_g, model.optimizer_d):
            assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(rate)]
