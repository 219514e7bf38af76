"""Membership attacks: they find planted copies, nothing in fresh images, and say how sure."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from common import metrics
from common.data import dataset
from dcgan import Discriminator
from report import evaluation, membership

N = 300


@pytest.fixture(scope="module")
def sets(phantom_dir):
    """Four sets of N phantoms each, all of one distribution."""
    images, _, _ = dataset.load("phantom", folder=phantom_dir)
    return images[: 4 * N].split(N)


def brighter(images):
    return (images.int() + 60).clamp(max=255).to(torch.uint8)


def test_a_generator_that_copies_gives_its_training_images_away(sets):
    members, others, non_members, _ = sets
    noise = torch.randint(-3, 4, members.shape, generator=torch.Generator().manual_seed(0))
    copies = (members + noise).clamp(0, 255).to(torch.uint8)
    found = membership.membership_auc(copies, members, non_members)
    assert found["auc"] > 0.99 and found["low"] > 0.99 and found["tpr"] > 0.95
    control = membership.membership_auc(others, members, non_members)
    assert control["low"] < 0.5 < control["high"]


def test_fresh_images_give_nobody_away(sets):
    fresh, members, others, non_members = sets
    for outsiders in (non_members, others):
        found = membership.membership_auc(fresh, members, outsiders)
        assert found["low"] < 0.5 < found["high"] and 0.4 < found["auc"] < 0.6
        assert found["tpr"] < 0.05


def test_a_different_test_set_looks_like_memory_and_the_control_tells(sets):
    """Nothing is remembered, but the non-members are brighter than all that was learned."""
    fresh, members, others, non_members = sets
    found = membership.membership_auc(fresh, members, brighter(non_members))
    control = membership.membership_auc(others, members, brighter(non_members))
    assert found["low"] > 0.7
    assert abs(found["auc"] - control["auc"]) < 0.05


class Sure(Discriminator):
    """Has learned by heart: logits (N, 2) of 1 for images it has seen, and else of 0."""

    def __init__(self, seen):
        super().__init__()
        self.seen = dataset.to_network(seen).flatten(1)

    def forward(self, images, labels=None):
        found = metrics.distances(images.flatten(1), self.seen).amin(1) < 0.01
        return found.float()[:, None].expand(-1, 2)


def test_a_discriminator_that_has_learned_by_heart_gives_its_training_images_away(sets):
    members, _, non_members, _ = sets
    found = membership.logit_auc(Sure(members).eval(), members, non_members)
    assert found == {"auc": 1, "low": 1, "high": 1, "tpr": 1}
    half = membership.logit_auc(Sure(members[: N // 2]).eval(), members, non_members)
    assert half["auc"] == pytest.approx(0.75) and half["tpr"] == 0.5


@pytest.mark.parametrize("labels", [0, 5])
def test_an_untrained_discriminator_gives_nobody_away(sets, labels):
    members, _, non_members, _ = sets
    torch.manual_seed(0)
    discriminator = Discriminator(labels=labels).eval()
    found = membership.logit_auc(discriminator, members, non_members)
    assert found["low"] < 0.5 < found["high"]


def test_the_report_attacks_with_what_there_is(sets):
    """Too few held-out images, or a discriminator that dcgan.py no longer has, are left out."""
    synthetic, images, _, held_out = sets
    saved = {"model_args": {"discriminator": {}}, "discriminator": Discriminator().state_dict()}

    def rows(held_out):
        samples = SimpleNamespace(images=images, examined=synthetic, held_out=held_out)
        facts = {"saved": saved, "checkpoint": Path("checkpoint.pt")}
        options = SimpleNamespace(SEED=0)
        return [*evaluation.attacks(SimpleNamespace(samples=samples, options=options, **facts))]

    assert rows(held_out) == ["images", "other", "chance", "discriminator"]
    saved["model_args"] = {"discriminator": {"scales": ()}}
    assert rows(held_out) == ["images", "other", "chance"]
    assert rows(held_out[:5]) == rows(None) == []


def test_the_auc_is_that_of_scikit_learn_and_its_interval_holds_what_it_promises():
    random = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        members = torch.randn(80, generator=random) + 1
        others = torch.randn(120, generator=random)
        found = membership.roc_auc(members, others)
        held += found["low"] <= 0.7602 <= found["high"]  # the normal distribution at 1 / sqrt(2)
    assert 0.92 < held / 400 < 0.98
    truth = torch.cat([torch.ones(80), torch.zeros(120)])
    scores = torch.cat([members, others])
    assert found["auc"] == pytest.approx(roc_auc_score(truth, scores))
    ties = membership.roc_auc(members.round(), others.round())
    assert ties["auc"] == pytest.approx(roc_auc_score(truth, scores.round()))


def test_the_tpr_counts_scores_above_all_but_one_in_a_hundred_of_the_others():
    others = torch.arange(200.0)
    assert membership.roc_auc(torch.tensor([196.5, 197.5, 198.5, 500.0]), others)["tpr"] == 0.75
    assert membership.roc_auc(torch.tensor([48.5, 49.5]), others[:50])["tpr"] == 0.5


def test_sets_that_are_no_sets_are_refused():
    with pytest.raises(ValueError, match="two scores"):
        membership.roc_auc(torch.ones(1), torch.ones(5))
    images = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    with pytest.raises(ValueError, match="uint8 images"):
        membership.membership_auc(images.float(), images, images)
