"""Few labels: what do the features of a DCGAN's discriminator add to a linear classifier?

    python benchmarks/low_data.py

Prints the linear rows of the tables in docs/RESULTS.md, "Few labels". A DCGAN learns from all
training images without labels; N of them have labels, too. Logistic regression on the pixels, on
principal components and on a discriminator's features is compared by the area under the ROC curve
(AUC) on the test images. All rows get the same draws of N images. The regularisation of each row is
tuned once, on the validation images, with other draws of TUNE_AT images. Intervals are 95 % of a
bootstrap over test images and draws. For data sets of grey 28x28 images and two classes.

Every constant below can be changed here or on the command line.
"""

import sys
from pathlib import Path

import numpy as np
import tools
import torch
from sklearn.linear_model import LogisticRegression

from common import checkpoint, metrics, settings
from common.data import dataset
from common.errors import UserError
from dcgan import Discriminator

# --- Data ---
DATASET = "pneumoniamnist"  # with two classes ["pneumoniamnist", "breastmnist"]
DATA_DIR = "data"  # folder of the .npz files
SIZES = "10,20,50,200,1000,all"  # N: labelled images, with the class frequencies of all of them
DRAWS = 10  # of N images, where N is at most 50 [2 to 1000]
DRAWS_ABOVE = 5  # of N images, above [2 to 1000]

# --- Training ---
EPOCHS = 50  # of the DCGAN [1 to 100000]
TUNE_AT = 50  # labelled images for tuning [10 to 1000]
TUNE_DRAWS = 2  # of them [1 to 100]

# --- Tables ---
BOOTSTRAP = 1000  # samples for an interval [100 to 100000]

# --- Files ---
OUT = "images/benchmarks/low_data"  # folder of the DCGAN

REFERENCE = "trained D"  # the row that the others are compared with
REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression


def main():
    images, labels = {}, {}
    for split in ("train", "val", "test"):
        images[split], vectors, _ = dataset.load(DATASET, split, DATA_DIR)
        labels[split] = vectors[:, 0]
    sizes = read_sizes(len(images["train"]))
    truth = labels["test"].numpy()
    weights = bootstrap_weights(len(truth), BOOTSTRAP)
    aucs = {}  # {(row, N): (draws, 1 + BOOTSTRAP)}
    for row, inputs in prepare(images).items():
        c = tune(inputs, labels)
        for n in sizes:
            draws = range(DRAWS if n <= 50 else DRAWS_ABOVE)
            scores = [score(inputs, labels, n, draw, c, "test") for draw in draws]
            aucs[row, n] = np.array([auc(of_draw, truth, weights) for of_draw in scores])
            print(f"{row}, C = {c}, N = {n:,}: {aucs[row, n][:, 0].mean():.3f}")
    print_tables(aucs, sizes)
    print(f"\n{tools.source()}")


def read_sizes(n_train):
    """Return the numbers in SIZES. Raises UserError unless all are from 10 to n_train."""
    words = [n_train if word.strip() == "all" else word.strip() for word in SIZES.split(",")]
    if not all(str(word).isdecimal() and 10 <= int(word) <= n_train for word in words):
        raise UserError(
            f"SIZES={SIZES}: legal are numbers from 10 to {n_train}, the training images, and "
            "the word all, separated by commas"
        )
    return [int(word) for word in words]


def prepare(images):
    """Train the DCGAN, unless it is done. Returns the inputs of each row, {row: {split: (N, D)}}.

    They have mean 0 and variance 1 on all training images, principal components in all together.
    """
    constants = {"DATASET": DATASET, "DATA_DIR": DATA_DIR, "EPOCHS": EPOCHS, "DEVICE": "cpu"}
    constants |= {"MODELS_DIR": f"{OUT}/models", "IMAGES_DIR": OUT, "RUN_NAME": "unlabelled"}
    tools.train(**constants, SNAPSHOT_EPOCHS=EPOCHS, METRIC_IMAGES=0)
    path = Path(OUT) / "models" / "unlabelled" / "checkpoint.pt"
    saved = checkpoint.load(path, checkpoint.CHECKPOINT)
    torch.manual_seed(0)
    random, trained = Discriminator(), checkpoint.rebuild_discriminator(saved, path)
    for network in (random, trained):  # BatchNorm of real images alone, not of a mixture
        batches = [dataset.to_network(batch) for batch in images["train"].split(256)]
        torch.optim.swa_utils.update_bn(batches, network.train())
        network.eval()
    mean, basis = metrics.fit_features(images["train"])
    functions = {
        "pixels": lambda x: dataset.to_network(x).flatten(1),
        "principal components": lambda x: metrics.features(x, mean, basis),
        "random D": lambda x: features(random, x),
        "trained D": lambda x: features(trained, x),
    }
    inputs = {}
    for row, function in functions.items():
        found = {split: function(images[split]).double().numpy() for split in images}
        middle, spread = found["train"].mean(0), found["train"].std(0) + 1e-6
        if row == "principal components":  # those of little variance are to stay small
            spread = found["train"].std()
        inputs[row] = {split: (x - middle) / spread for split, x in found.items()}
    return inputs


@torch.inference_mode()
def features(discriminator, images):
    """Return a discriminator's features, float (N, 2048)."""
    batches = [discriminator.features(dataset.to_network(batch)) for batch in images.split(512)]
    return torch.cat(batches)


def tune(inputs, labels):
    """Return the C of REGULARISATIONS with the highest AUC on the validation images."""
    truth, means = labels["val"].numpy(), []
    one = np.ones((1, len(truth)))
    for c in REGULARISATIONS:
        draws = range(1000, 1000 + TUNE_DRAWS)
        scores = [score(inputs, labels, TUNE_AT, draw, c, "val") for draw in draws]
        means.append(np.mean([auc(of_draw, truth, one) for of_draw in scores]))
    return REGULARISATIONS[int(np.argmax(means))]


def score(inputs, labels, n, draw, c, split):
    """Return the probability of class 1 of a split's images, (M,), learned from n labels."""
    chosen = choose(labels["train"], n, draw).numpy()
    model = LogisticRegression(C=c, max_iter=2000)
    model.fit(inputs["train"][chosen], labels["train"].numpy()[chosen])
    return model.predict_proba(inputs[split])[:, 1]


def choose(labels, n, seed):
    """Return the indices of n random images, classes as frequent as in all, at least 2 of each."""
    random = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        of_class = (labels == label).nonzero().squeeze(1)
        count = max(2, round(n * len(of_class) / len(labels)))
        chosen.append(of_class[torch.randperm(len(of_class), generator=random)[:count]])
    return torch.cat(chosen)


def bootstrap_weights(n, samples):
    """Return how often each of n images is in each sample, (1 + samples, n); all 1 first."""
    random = np.random.default_rng(1)
    drawn = random.multinomial(n, np.full(n, 1 / n), samples)
    return np.concatenate([np.ones((1, n)), drawn])


def auc(scores, truth, weights):
    """Return the area under the ROC curve of scores (M,) for each row of weights (B, M), (B,).

    The share of pairs of a positive and a negative image that are in order, ties counting half. A
    call of scikit-learn for each row would take minutes.
    """
    order = scores.argsort()
    _, starts = np.unique(scores[order], return_index=True)
    positive, negative = (
        np.add.reduceat((weights * (truth == label))[:, order], starts, axis=1) for label in (1, 0)
    )
    below = negative.cumsum(axis=1) - negative / 2
    return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))


def difference(ours, theirs):
    """Return the mean difference in AUC of two rows, and its 95 % interval, (mean, low, high).

    A bootstrap over test images and draws together: both rows, (draws, 1 + B), get the same samples
    of both.
    """
    gaps = ours - theirs  # the first column is that of all test images
    random = np.random.default_rng(0)
    taken = random.integers(0, len(gaps), gaps[:, 1:].shape)
    means = np.take_along_axis(gaps[:, 1:], taken, axis=0).mean(0)
    return gaps[:, 0].mean(), *np.percentile(means, (2.5, 97.5))


def print_tables(aucs, sizes):
    """Print the AUC of each row and its difference to that of REFERENCE."""
    heads = ["labelled images", *(f"{n:,}" for n in sizes)]
    rows = dict.fromkeys(row for row, _ in aucs)
    print("\nAUC on the test images, mean (standard deviation) of the draws.\n")
    tools.print_head(*heads)
    for row in rows:
        found = [aucs[row, n][:, 0] for n in sizes]
        cells = [f"{of_n.mean():.3f} ({of_n.std(ddof=1):.3f})" for of_n in found]
        tools.print_row(f"{row}, linear", *cells)
    print(f"\nDifference to {REFERENCE}, linear, and its 95 % interval.\n")
    tools.print_head(*heads)
    for row in rows:
        if row != REFERENCE:
            found = [difference(aucs[row, n], aucs[REFERENCE, n]) for n in sizes]
            cells = [f"{mean:+.3f} ({low:+.3f} to {high:+.3f})" for mean, low, high in found]
            tools.print_row(f"{row}, linear", *cells)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    settings.override(globals())
    main()
