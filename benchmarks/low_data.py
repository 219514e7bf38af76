"""Few labels: what does a DCGAN that saw all images without labels add to a classifier?

    python benchmarks/low_data.py                   everything; the same again resumes and prints
    python benchmarks/low_data.py --ROWS="D fine-tuned, augmented" --SIZES=20

For several N, N real training images have labels and all others have none. Each row is a way to
make a classifier of them; it is tested by its area under the ROC curve (AUC) on the real test
images. All rows get the same draws of N images. What a row can choose (regularisation, learning
rate, strength of augmentation) is tuned once, on the validation images, with other draws of TUNE_AT
images. Intervals are 95 % of a bootstrap over test images and draws, paired with REFERENCE.

The scores of each row, N and draw are a file in OUT/scores: finished ones are not repeated, and two
processes with different ROWS can share OUT. For data sets of grey 28x28 images and two classes.

Every constant below can be changed here or on the command line.
"""

import json
import re
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import auc_tables
import classifiers
import compare
import conditional_gans
import corruptions

import train_model
from common import checkpoint, files, hardware, metrics, sampling, settings
from common.data import dataset
from common.errors import UserError
from dcgan import Discriminator

# --- Data ---
DATASET = "pneumoniamnist"  # with two classes ["pneumoniamnist", "breastmnist"]
DATA_DIR = "data"  # folder of the .npz files
SIZES = "10,20,50,200,1000,all"  # N: labelled images, with the class frequencies of all of them
DRAWS = 10  # of N images, where N is at most 50 [2 to 1000]
DRAWS_ABOVE = 5  # of N images, above; at all, only the seed differs [2 to 1000]
ROWS = "all"  # or names from below, separated by semicolons

# --- DCGANs ---
EPOCHS = 50  # of the DCGAN that sees all images without labels [1 to 100000]
GAN_STEPS = 600  # of a conditional DCGAN on N images alone, from new weights [1 to 1000000]
LABEL_STEPS = 600  # of the DCGAN of all images, made conditional, on pseudo-labels [1 to 1000000]
SYNTHETIC = 5000  # images drawn from one of them [64 to 100000]

# --- Classifiers ---
STEPS = 600  # training steps of a network [4 to 1000000]
BATCH_SIZE = 64  # images of a step [4 to 4096]
CONTRASTIVE_BATCH = 256  # images of a step of SimCLR [4 to 4096]
TUNE_AT = 50  # labelled images for tuning [10 to 1000]
TUNE_DRAWS = 2  # of them [1 to 100]

# --- Tables ---
IDEAS_AT = "20,200"  # N for the rows in IDEAS
CORRUPTED_AT = "200,all"  # N for the rows in CORRUPTED
BOOTSTRAP = 1000  # samples for an interval [100 to 100000]

# --- Files ---
OUT = "images/benchmarks/low_data"  # folder of the DCGANs and the scores

# Logistic regression on these inputs.
LINEAR = ["pixels", "principal components", "random D", "trained D", "SimCLR"]
LINEAR = [f"{inputs}, linear" for inputs in LINEAR]
# Networks, and whether their images are augmented. "D's shape" is the discriminator with one linear
# layer for the classes, from new weights; fine-tuned ones begin with those of training or SimCLR.
NETWORKS = {
    "small network, augmented": True,
    "D's shape": False,
    "D's shape, augmented": True,
    "D fine-tuned, augmented": True,
    "SimCLR fine-tuned, augmented": True,
}
REFERENCE = "D's shape, augmented"  # what each row is compared with, and IDEAS are built upon
# REFERENCE with other images in half of each batch: which ones, and what it learns from them. A
# conditional DCGAN learned the labels of the N images alone, or also the pseudo-labels that
# "trained D, linear" gives all others; "synthetic" is from the DCGAN without labels.
MIXED = {
    "+ synthetic, DCGAN of the N": ("DCGAN of the N", "labels"),
    "+ synthetic, DCGAN of all, pseudo-labels": ("DCGAN of all", "labels"),
    "+ synthetic, pseudo-labels, classes balanced": ("DCGAN of all, balanced", "labels"),
    "+ synthetic without labels, consistency": ("synthetic", "consistency"),
    "+ real without labels, consistency": ("real", "consistency"),
    "+ synthetic as a class of its own": ("synthetic", "third class"),
    "+ synthetic without labels, labelled by trained D, linear": ("synthetic", "labels"),
    "+ real without labels, labelled by trained D, linear": ("real", "labels"),
}
# The mean of the probabilities of two rows.
MEANS = {"mean of trained D, linear, and D fine-tuned": [LINEAR[3], "D fine-tuned, augmented"]}
IDEAS = [*MIXED, *MEANS][2:]
CORRUPTED = ["D's shape", REFERENCE, [*MIXED][1], "D fine-tuned, augmented"]
ALL_ROWS = [*LINEAR, *NETWORKS, *MIXED, *MEANS]

REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression
STRENGTHS = (0.5, 1.0, 2.0)  # of the augmentation
LEARNING_RATES = (3e-4, 1e-3)  # of Adam


def main(constants):
    """Measure what OUT does not hold yet, then print the tables."""
    out = files.make_folder(OUT)
    images, labels = {}, {}
    for split in ("train", "val", "test"):
        images[split], vectors, _ = dataset.load(DATASET, split, DATA_DIR)
        labels[split] = vectors[:, 0]
    sizes, rows = read_sizes(len(images["train"])), ROWS.split(";")
    rows = ALL_ROWS if ROWS == "all" else [name.strip() for name in rows]
    if unknown := [name for name in rows if name not in ALL_ROWS]:
        raise UserError(f"ROWS: there is no {unknown[0]!r}; legal are {'; '.join(ALL_ROWS)}")
    keep_settings(out, constants)
    dtype = hardware.choose_dtype("auto", classifiers.CPU)
    tools = {"images": images, "labels": labels, "dtype": dtype, "out": out}
    tools |= prepare(tools)
    tools["tuned"] = {name: tune(name, tools) for name in [*LINEAR, *NETWORKS]}
    for row in rows:
        for n in sizes:
            if wanted(row, n, len(labels["train"])):
                for draw in range(draws(n)):
                    measure(row, n, draw, tools)
    print_tables(sizes, labels["test"].numpy(), out)
    print(f"\n{compare.machine(classifiers.CPU)}, {dtype}.\n\n    python {shlex.join(sys.argv)}")


def read_sizes(n_train):
    """Return the numbers in SIZES. Raises UserError unless all are from 10 to n_train."""
    words = [n_train if word.strip() == "all" else word.strip() for word in SIZES.split(",")]
    if not all(str(word).isdecimal() and 10 <= int(word) <= n_train for word in words):
        raise UserError(
            f"SIZES={SIZES}: legal are numbers from 10 to {n_train}, the training images, and "
            "the word all, separated by commas"
        )
    return [int(word) for word in words]


def draws(n):
    return DRAWS if n <= 50 else DRAWS_ABOVE


def wanted(row, n, n_train):
    """Whether a row is measured at N."""
    if row in MIXED and MIXED[row][0] == "DCGAN of the N":
        return n < n_train  # at all, that is the DCGAN of all
    return row not in IDEAS or named(n, IDEAS_AT, n_train)


def named(n, sizes, n_train):
    return ("all" if n == n_train else str(n)) in sizes.split(",")


def keep_settings(out, constants):
    """Write what the scores depend on into OUT. Raises UserError if it holds those of others."""
    free = ("OUT", "DATA_DIR", "ROWS", "SIZES", "DRAWS", "DRAWS_ABOVE", "IDEAS_AT", "BOOTSTRAP")
    current = {key: value for key, value in constants.items() if key not in free}
    for key in ("BATCH_SIZE", "LATENT_DIM", "LEARNING_RATE", "BETA1", "EMA_HALF_LIFE"):
        current[f"train_model.{key}"] = getattr(train_model, key)
    path = out / "settings.json"
    if path.exists() and json.loads(path.read_text()) != current:
        raise UserError(f"{out} was measured with other settings. Choose another OUT.")
    write_json(path, current)


def write_json(path, content):
    with files.atomic_write(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def prepare(tools):
    """Train the DCGAN and the contrastive network on all images without labels, unless it is done.

    Returns the DCGAN's checkpoint, the discriminators by name, and the inputs of the logistic
    regressions, {row: {split: (N, D)}}, which have mean 0 and variance 1 on all training images,
    and the mean and the spread that they had before, {row: (mean, spread)}.
    """
    images, out, dtype = tools["images"], tools["out"], tools["dtype"]
    path = out / "models" / "unlabelled" / "checkpoint.pt"
    seconds_file = out / "dcgan.json"
    if not seconds_file.exists():
        begin = time.process_time()
        arguments = {"DATASET": DATASET, "DATA_DIR": DATA_DIR, "EPOCHS": EPOCHS}
        arguments |= {"MODELS_DIR": out / "models", "IMAGES_DIR": out, "RUN_NAME": "unlabelled"}
        arguments |= {"SNAPSHOT_EPOCHS": EPOCHS, "METRIC_IMAGES": 0, "DEVICE": "cpu"}
        arguments = [f"--{name}={value}" for name, value in arguments.items()]
        train_model.main(settings.override(vars(train_model), arguments))
        write_json(seconds_file, {"seconds": time.process_time() - begin})
    saved = checkpoint.load(path, checkpoint.CHECKPOINT)
    trained = checkpoint.rebuild_discriminator(saved, path)
    torch.manual_seed(0)
    encoders = {"random D": Discriminator(), "trained D": trained, "SimCLR": Discriminator()}
    contrastive = out / "simclr.pt"
    if not contrastive.exists():
        seconds = json.loads(seconds_file.read_text())["seconds"]
        found = encoders["SimCLR"], images["train"], seconds, CONTRASTIVE_BATCH, dtype
        network, steps = classifiers.simclr(*found)
        print(f"SimCLR: {steps:,} steps in {seconds:.0f} s of CPU time, as long as the DCGAN")
        checkpoint.save(contrastive, network.state_dict())
    encoders["SimCLR"].load_state_dict(torch.load(contrastive, weights_only=True))
    mean, basis = metrics.fit_features(images["train"])
    of = {
        "pixels": lambda x: dataset.to_network(x).flatten(1),
        "principal components": lambda x: metrics.features(x, mean, basis),
    }
    for name, encoder in encoders.items():
        classifiers.measure_bn(encoder, images["train"])
        of[name] = lambda x, encoder=encoder: classifiers.features(encoder, x)
    inputs, scales = {}, {}
    for name, function in of.items():
        found = {split: function(images[split]).double().numpy() for split in images}
        middle, spread = found["train"].mean(0), found["train"].std(0) + 1e-6
        if name == "principal components":  # those of little variance are to stay small
            spread = found["train"].std()
        row = f"{name}, linear"
        scales[row] = middle, spread
        inputs[row] = {split: (x - middle) / spread for split, x in found.items()}
    return {"saved": saved, "encoders": encoders, "inputs": inputs, "scales": scales}


def tune(name, tools):
    """Return the best choice for a row on the validation images, a list, from OUT if it is there.

    For logistic regressions it is [C], for networks [strength of augmentation, learning rate].
    """
    path = tools["out"] / "tuned" / f"{slug(name)}.json"
    if not path.exists():
        if name in LINEAR:
            choices = [[c] for c in REGULARISATIONS]
        else:
            strengths = STRENGTHS if NETWORKS[name] else (0.0,)
            choices = [[strength, rate] for strength in strengths for rate in LEARNING_RATES]
        truth, means = tools["labels"]["val"].numpy(), []
        for choice in choices:
            aucs = []
            for draw in range(1000, 1000 + TUNE_DRAWS):
                chosen = choose(tools["labels"]["train"], TUNE_AT, draw)
                if name in LINEAR:
                    model = fit_linear(name, chosen, choice, tools)
                    scores = model.predict_proba(tools["inputs"][name]["val"])[:, 1]
                else:
                    network = fit_network(name, chosen, draw, choice, tools)
                    scores = classifiers.score(network, tools["images"]["val"])
                aucs.append(roc_auc_score(truth, scores))
            means.append(float(np.mean(aucs)))
        found = ", ".join(f"{c}: {auc:.3f}" for c, auc in zip(choices, means, strict=True))
        print(f"tuned {name}: validation AUC {found}")
        files.make_folder(path.parent)
        write_json(path, {"best": choices[int(np.argmax(means))], "tried": choices, "auc": means})
    return json.loads(path.read_text())["best"]


def choose(labels, n, seed):
    """Return the indices of n random images, classes as frequent as in all, at least 2 of each."""
    random = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        of_class = (labels == label).nonzero().squeeze(1)
        count = max(2, round(n * len(of_class) / len(labels)))
        chosen.append(of_class[torch.randperm(len(of_class), generator=random)[:count]])
    return torch.cat(chosen)


def slug(name):
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def score_file(out, row, n, draw):
    return out / "scores" / f"{slug(row)}-{n}-{draw}.npy"


def measure(row, n, draw, tools):
    """Write the scores of the test images, float32 (1, M), unless they are there.

    Where a row is tested on corrupted images as well, (1 + 13 kinds x 5 severities, M).
    """
    path = score_file(tools["out"], row, n, draw)
    if path.exists():
        return
    begin = time.monotonic()
    images, labels = tools["images"], tools["labels"]
    chosen = choose(labels["train"], n, draw)
    if row in LINEAR:
        model = fit_linear(row, chosen, tools["tuned"][row], tools)
        scores = model.predict_proba(tools["inputs"][row]["test"])[None, :, 1]
    elif row in MEANS:
        for part in MEANS[row]:
            measure(part, n, draw, tools)
        parts = [np.load(score_file(tools["out"], part, n, draw))[:1] for part in MEANS[row]]
        scores = sum(parts) / len(parts)
    else:
        if row in NETWORKS:
            network = fit_network(row, chosen, draw, tools["tuned"][row], tools)
        else:
            network = fit_mixed(row, chosen, n, draw, tools)
        tests = [images["test"]]
        if row in CORRUPTED and named(n, CORRUPTED_AT, len(labels["train"])):
            tests += [
                corruptions.corrupt(images["test"], kind, severity)
                for kind in corruptions.STRENGTHS
                for severity in range(1, corruptions.SEVERITIES + 1)
            ]
        scores = np.stack([classifiers.score(network, test) for test in tests])
    files.make_folder(path.parent)
    with files.atomic_write(path) as file:
        np.save(file, scores.astype(np.float32))
    auc = roc_auc_score(labels["test"].numpy(), scores[0])
    print(f"N {n}, {row}, draw {draw}: AUC {auc:.3f}, {time.monotonic() - begin:.0f} s")


def print_tables(sizes, truth, out):
    """Print what has been measured at these N."""
    weights, samples = auc_tables.bootstrap_weights(len(truth), BOOTSTRAP), {}
    for row in ALL_ROWS:
        for n in sizes:
            if (scores := load_scores(row, n, out)) is not None:
                samples[row, n] = auc_tables.sample(scores, truth, weights)
    print(f"\nAUC on {len(truth)} test images, mean (standard deviation) of the draws.\n")
    auc_tables.print_auc(samples, ALL_ROWS, sizes)
    for reference, rows in ((REFERENCE, ALL_ROWS), ("trained D, linear", [*LINEAR, *NETWORKS])):
        auc_tables.print_differences(samples, rows, sizes, reference)
    for n in sizes:
        auc_tables.print_corrupted(samples, [*corruptions.STRENGTHS], CORRUPTED, n, REFERENCE)


def load_scores(row, n, out):
    """Return the scores of all draws, (draws, tests, M), or None unless all have been measured."""
    paths = [score_file(out, row, n, draw) for draw in range(draws(n))]
    if not all(path.exists() for path in paths):
        return None
    return np.stack([np.load(path) for path in paths])


def fit_linear(row, chosen, choice, tools):
    """Return scikit-learn's logistic regression on a row's inputs of the chosen images."""
    inputs = tools["inputs"][row]["train"][chosen.numpy()]
    labels = tools["labels"]["train"][chosen].numpy()
    return LogisticRegression(C=choice[0], max_iter=2000).fit(inputs, labels)


def fit_network(row, chosen, draw, choice, tools):
    """Train a network in NETWORKS on the chosen images alone."""
    images, labels = tools["images"]["train"][chosen], tools["labels"]["train"][chosen]
    strength, rate = choice
    loss = classifiers.supervised((images, labels, BATCH_SIZE), strength=strength)
    network = new_network(row, draw, tools)
    return classifiers.train(network, loss, STEPS, rate, tools["dtype"])


def new_network(row, draw, tools, classes=2):
    torch.manual_seed(draw)
    if row.startswith("small network"):
        return classifiers.SmallNetwork(classes)
    begin_with = {"D fine-tuned": "trained D", "SimCLR fine-tuned": "SimCLR"}
    encoder = tools["encoders"].get(begin_with.get(row.split(",")[0]))
    return classifiers.OnFeatures(encoder or Discriminator(), classes)


def fit_mixed(row, chosen, n, draw, tools):
    """Train REFERENCE's network on the chosen images and on others, as the row says."""
    images, labels = tools["images"]["train"], tools["labels"]["train"]
    real = images[chosen], labels[chosen]
    strength, rate = tools["tuned"][REFERENCE]
    half, (source, lesson) = BATCH_SIZE // 2, MIXED[row]
    if source.startswith("DCGAN"):
        generator = conditional_gan(chosen, n, draw, source == "DCGAN of the N", tools)
        balanced = source.endswith("balanced")
        shares = torch.ones(2) if balanced else real[1].bincount(minlength=2).float()
        others, classes = conditional_gans.draw(generator, shares, SYNTHETIC, draw)
    elif source == "real":
        others = images
    else:
        generator = checkpoint.rebuild_generator(tools["saved"], "the DCGAN of all images")
        others = sampling.sample(generator, {}, SYNTHETIC, seed=draw)
    if lesson == "consistency":
        loss = classifiers.consistent(*real, others, half, strength)
    else:
        if lesson == "third class":
            classes = torch.full((len(others),), 2)
        elif not source.startswith("DCGAN"):
            classes = pseudo_labels(others, chosen, tools)
        loss = classifiers.supervised((*real, half), (others, classes, half), strength=strength)
    network = new_network(REFERENCE, draw, tools, classes=3 if lesson == "third class" else 2)
    return classifiers.train(network, loss, STEPS, rate, tools["dtype"])


def pseudo_labels(images, chosen, tools):
    """Return the classes that "trained D, linear" finds in images, and the true ones of the chosen.

    The most probable ones are of class 1, as many as its share of the chosen images: with few
    labels probabilities are far from calibrated, and nearly all of them can lie on one side of 0.5.
    """
    row = "trained D, linear"
    labels, train_images = tools["labels"]["train"], tools["images"]["train"]
    if images is train_images:
        inputs = tools["inputs"][row]["train"]
    else:
        middle, spread = tools["scales"][row]
        features = classifiers.features(tools["encoders"]["trained D"], images)
        inputs = (features.double().numpy() - middle) / spread
    model = fit_linear(row, chosen, tools["tuned"][row], tools)
    found = model.predict_proba(inputs)[:, 1]
    share = labels[chosen].double().mean().item()
    classes = torch.from_numpy(found > np.quantile(found, 1 - share)).long()
    if images is train_images:
        classes[chosen] = labels[chosen]
    return classes


def conditional_gan(chosen, n, draw, alone, tools):
    """Return a generator that learned the labels of the chosen images, from OUT if it is there.

    alone: trained on them alone, from new weights, for GAN_STEPS. Otherwise it is the DCGAN of all
    images, trained on for LABEL_STEPS with the pseudo-labels of the others.
    """
    path = tools["out"] / "models" / f"{'alone' if alone else 'all'}-{n}-{draw}.pt"
    if not path.exists():
        images, dtype = tools["images"]["train"], tools["dtype"]
        if alone:
            images, labels = images[chosen], tools["labels"]["train"][chosen]
            state = conditional_gans.train(images, labels, GAN_STEPS, draw, dtype)
        else:
            labels = pseudo_labels(images, chosen, tools)
            begin_with = tools["saved"]
            state = conditional_gans.train(images, labels, LABEL_STEPS, draw, dtype, begin_with)
        checkpoint.save(path, state)
    return conditional_gans.rebuild(torch.load(path, weights_only=True), path)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    try:
        main(settings.override(globals()))
    except KeyboardInterrupt:
        print("\ninterrupted; to resume, run the same command again")
        sys.exit(130)
