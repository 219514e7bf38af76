"""Do synthetic images help to train a classifier? Measured on real test images.

    python benchmarks/utility.py                    about 50 minutes on 2 CPU cores
    python benchmarks/utility.py                    the same again: resume where it stopped

For several N, a conditional DCGAN is trained on N real images alone. Then a classifier is trained
on these images with and without synthetic ones, and tested on the real test split by medmnist's
Evaluator. Each number in OUT/results.csv is one training of a classifier; the tables are printed
from that file.

The classifier is a small convolutional network, trained for the same number of steps in all
conditions, and tested after the last one: selecting the best step would need many labelled
validation images, and then N would not be small. A ResNet-18 trained on all real images, as
MedMNIST's authors did, is a check of these measurements.

Every constant below can be changed here or on the command line.
"""

import csv
import hashlib
import json
import shlex
import sys
import time
from pathlib import Path

import medmnist
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import compare

import train_model
from common import checkpoint, dataset, ema, files, hardware, metrics, sampling, settings
from common.settings import UserError

# --- Data ---
DATASET = "pneumoniamnist"  # with one class per image ["pneumoniamnist", "breastmnist"]
DATA_DIR = "data"  # folder of the .npz files
SIZES = "50,200,1000,all"  # N: real training images, with the class frequencies of all of them
SEEDS = 3  # each for the choice of the N images, the DCGAN and the classifier [1 to 100]

# --- DCGAN ---
GAN_STEPS = 1500  # training steps of train_model.BATCH_SIZE images [1 to 1000000]
SYNTHETIC = 5000  # images drawn from it, to train classifiers on [64 to 100000]

# --- Classifiers ---
STEPS = 600  # training steps of the small network [4 to 1000000]
BATCH_SIZE = 64  # images a step of it [2 to 4096]
LEARNING_RATE = 1e-3  # of Adam, divided by 10 after 1/2 and 3/4 of the steps [1e-8 to 1.0]
SHARE = 0.5  # of synthetic images in a batch where they are added [0.0 to 1.0]
MORE_AT = "200"  # the N at which MORE_CONDITIONS are measured, too
RESNET_EPOCHS = 6  # of the ResNet-18 on all real images; 0 for none [0 to 1000]

# --- Metrics ---
METRIC_IMAGES = 1000  # synthetic and real images compared [20 to 20000]

# --- Files ---
OUT = "images/benchmarks/utility"  # folder of the results, the generators and the classifier

COLUMNS = ["n", "condition", "seed", "auc", "accuracy", "seconds"]
# What a classifier is trained on: the share of synthetic images in a batch; whether real ones are
# augmented, as `augment` does; and which of the synthetic ones are used.
CONDITIONS = {
    "real": (0.0, False, "all"),
    "real, augmented": (0.0, True, "all"),
    "real + synthetic": (None, False, "all"),  # None: SHARE
    "synthetic": (1.0, False, "all"),
}
MORE_CONDITIONS = {
    "real, augmented + synthetic": (None, True, "all"),
    "real + synthetic, 1 in 4": (0.25, False, "all"),
    "real + synthetic, 3 in 4": (0.75, False, "all"),
    "real + synthetic, classes balanced": (None, False, "balanced"),
    "real + synthetic, the surer half": (None, False, "surer half"),
}


def main(constants):
    """Measure what results.csv does not hold yet, then print the tables."""
    out = files.make_folder(OUT)
    with files.lock(out, doing="measuring in", constant="OUT"):
        train, test = (dataset.load(DATASET, split, DATA_DIR)[:2] for split in ("train", "test"))
        sizes = [len(train[0]) if size == "all" else to_number(size) for size in SIZES.split(",")]
        if max(sizes) > len(train[0]):
            raise UserError(f"SIZES={SIZES}: legal are at most {len(train[0])} and the word all")
        keep_settings(out, constants)
        dtype = hardware.choose_dtype("auto", torch.device("cpu"))
        results = read_results(out / "results.csv")
        cells = [
            (n, condition, seed)
            for seed in range(SEEDS)
            for n in sizes
            for condition in CONDITIONS | (MORE_CONDITIONS if str(n) == MORE_AT else {})
        ]
        cells += [(len(train[0]), "real, ResNet-18", 0)] if RESNET_EPOCHS else []
        for n, condition, seed in cells:
            if (n, condition, seed) in results:
                continue
            begin = time.monotonic()
            if condition == "real, ResNet-18":
                scores = train_resnet(train, test[0], dtype)
            else:
                scores = evaluate_condition(train, test[0], n, condition, seed, dtype, out)
            auc, accuracy = medmnist.Evaluator(DATASET, "test", root=DATA_DIR).evaluate(scores)
            seconds = time.monotonic() - begin
            results[n, condition, seed] = [round(auc, 4), round(accuracy, 4), round(seconds, 1)]
            write_results(results, out / "results.csv")
            print(f"N {n}, {condition}, seed {seed}: AUC {auc:.3f}, {seconds:.0f} s")
        print_results(results, sizes, len(test[0]))
        print_images(train, test, sizes, dtype, out)
        print(f"\n{compare.machine(torch.device('cpu'))}, {dtype}.\n")
        print(f"    python {shlex.join(sys.argv)}")


def keep_settings(out, constants):
    """Write the constants that results depend on into OUT. Raises UserError if others are there.

    They include the numbers at the top of train_model.py.
    """
    current = {key: value for key, value in constants.items() if key not in ("OUT", "DATA_DIR")}
    for key, value in vars(train_model).items():
        if key.isupper() and isinstance(value, (int, float)):
            current[f"train_model.{key}"] = value
    path = out / "settings.json"
    if path.exists() and json.loads(path.read_text()) != current:
        raise UserError(f"{out} was measured with other settings. Choose another OUT.")
    with files.atomic_write(path) as file:
        file.write(json.dumps(current, indent=1).encode())


def to_number(size):
    if not size.isdecimal() or int(size) < 20:
        raise UserError(
            f'SIZES={SIZES}: legal are whole numbers from 20 and "all", separated by commas'
        )
    return int(size)


def evaluate_condition(train, test_images, n, condition, seed, dtype, out):
    """Train a classifier in a condition. Returns its scores of the test images, (M, classes)."""
    share, augmented, subset = (CONDITIONS | MORE_CONDITIONS)[condition]
    share = SHARE if share is None else share
    real = choose(*train, n, seed)
    synthetic = None
    if share > 0:
        generator = train_gan(real, n, seed, dtype, out)
        synthetic = draw(generator, real[1], seed, balanced=subset == "balanced")
        if subset == "surer half":
            classifier = train_classifier(real, None, 0.0, False, seed, dtype)
            scores = score(classifier, synthetic[0])[torch.arange(SYNTHETIC), synthetic[1]]
            kept = []
            for of_class in indices_of_classes(synthetic[1]):  # half of each, whichever is easier
                order = scores[of_class].argsort(descending=True)
                kept.append(of_class[order[: (len(of_class) + 1) // 2]])
            kept = torch.cat(kept)
            synthetic = synthetic[0][kept], synthetic[1][kept]
    network = train_classifier(real, synthetic, share, augmented, seed, dtype)
    if condition == "real" and n == len(train[0]) and seed == 0:
        checkpoint.save(out / "classifier.pt", network.state_dict())
    return score(network, test_images).numpy()


def indices_of_classes(labels):
    return [(labels == label).nonzero().squeeze(1) for label in labels.unique()]


def choose(images, labels, n, seed):
    """Choose n images at random, with the class frequencies of all, and at least two of each class.

    Returns uint8 (n, C, 28, 28) and class numbers (n,).
    """
    labels = labels[:, 0]
    random = torch.Generator().manual_seed(seed)
    chosen = []
    for of_class in indices_of_classes(labels):
        count = max(2, round(n * len(of_class) / len(labels)))
        chosen.append(of_class[torch.randperm(len(of_class), generator=random)[:count]])
    chosen = torch.cat(chosen)
    return images[chosen], labels[chosen]


def train_gan(real, n, seed, dtype, out):
    """Return a generator trained on these images and labels alone, saved in OUT."""
    images, labels = real
    vectors = dataset.encode_labels(DATASET, labels[:, None])
    path = out / f"generator_{n}_{seed}.pt"
    model_args = train_model.network_args(images.shape[1], vectors.shape[1])
    if not path.exists():
        torch.manual_seed(seed)
        model = train_model.build(model_args, torch.device("cpu"))
        batch, half_life = train_model.BATCH_SIZE, train_model.EMA_HALF_LIFE
        for step in range(1, GAN_STEPS + 1):
            chosen = torch.randint(len(images), (batch,))
            batch_images = dataset.to_network(images[chosen])
            train_model.train_step(batch_images, vectors[chosen], model, dtype)
            ema.update_ema(model.generator_ema, model.generator, step * batch, batch, half_life)
        label_counts = dataset.count_labels(vectors)
        ema.update_bn(model.generator_ema, label_counts, train_model.SEED, dtype)
        checkpoint.save(path, model.generator_ema.state_dict())
    state = torch.load(path, weights_only=True)
    return checkpoint.rebuild_generator({"model_args": model_args, "generator_ema": state}, path)


def draw(generator, labels, seed, balanced=False, n=None):
    """Draw n images, by default SYNTHETIC, and their classes, uint8 (n, C, 28, 28) and (n,).

    The classes are as frequent as in labels, or all equally frequent if balanced.
    """
    random = torch.Generator().manual_seed(seed)
    counts = labels.bincount(minlength=len(dataset.label_names(DATASET))).double()
    counts = (counts > 0).double() if balanced else counts
    drawn = counts.multinomial(n or SYNTHETIC, replacement=True, generator=random)
    latents = torch.randn(len(drawn), generator.latent_dim, generator=random)
    vectors = dataset.encode_labels(DATASET, drawn[:, None])
    return sampling.draw(generator, latents, vectors), drawn


class SmallNetwork(nn.Module):
    """Images (N, C, 28, 28) in [-1, 1] -> logits (N, classes), from `features`, (N, 128)."""

    def __init__(self, channels, classes):
        super().__init__()
        layers, last = [], channels
        for width, pool in ((32, False), (32, True), (64, False), (64, True), (128, False)):
            layers += [nn.Conv2d(last, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(inplace=True)] + ([nn.MaxPool2d(2)] if pool else [])
            last = width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classify = nn.Linear(last, classes)

    def forward(self, images):
        return self.classify(self.features(images))


def train_classifier(real, synthetic, share, augmented, seed, dtype):
    """Train a SmallNetwork on batches drawn with replacement, and return it in eval mode."""
    torch.manual_seed(seed)
    network = SmallNetwork(real[0].shape[1], len(dataset.label_names(DATASET)))
    network = network.to(memory_format=torch.channels_last)
    optimizer, schedule = make_optimizer(network, LEARNING_RATE, STEPS)
    n_synthetic = round(share * BATCH_SIZE)
    for _ in range(STEPS):
        parts = []
        if n_synthetic < BATCH_SIZE:
            images, labels = pick(real, BATCH_SIZE - n_synthetic)
            parts.append((augment(images) if augmented else images, labels))
        if n_synthetic:
            parts.append(pick(synthetic, n_synthetic))
        images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        classifier_step(network, optimizer, images, labels, dtype)
        schedule.step()
    return network.eval()


def make_optimizer(network, learning_rate, steps):
    """Return Adam and a schedule, which divides the learning rate by 10 after 1/2 and 3/4."""
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    drops = [steps // 2, steps * 3 // 4]
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=0.1)


def classifier_step(network, optimizer, images, labels, dtype):
    images = images.contiguous(memory_format=torch.channels_last)
    with hardware.autocast(images.device, dtype):
        logits = network(images).float()
    optimizer.zero_grad()
    F.cross_entropy(logits, labels).backward()
    optimizer.step()


def pick(images_and_labels, n):
    images, labels = images_and_labels
    chosen = torch.randint(len(images), (n,))
    return dataset.to_network(images[chosen]), labels[chosen]


def augment(images):
    """Shift by up to 2 pixels, scale by up to a tenth, brighten by up to a tenth of the range.

    No flips, as the heart is on the left. Pixels from outside the image repeat its border.
    """
    n = len(images)
    scale = 1 + (torch.rand(n) * 2 - 1) * 0.1
    transform = torch.zeros(n, 2, 3)
    transform[:, 0, 0] = transform[:, 1, 1] = scale
    transform[:, :, 2] = (torch.rand(n, 2) * 2 - 1) * 2 / (images.shape[-1] / 2)
    grid = F.affine_grid(transform, images.shape, align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    brighter = (torch.rand(n, 1, 1, 1) * 2 - 1) * 0.2  # of [-1, 1]
    return (moved + brighter).clamp(-1, 1)


@torch.inference_mode()
def score(network, images):
    """Return the probabilities of the classes, (N, classes), of uint8 images (N, C, 28, 28)."""
    batches = dataset.to_network(images).split(256)
    return torch.cat([network(batch).float().softmax(dim=1) for batch in batches])


def train_resnet(train, test_images, dtype):
    """Train torchvision's ResNet-18 on all real images. Returns its scores of the test images.

    As MedMNIST's authors did: a 3x3 first convolution without stride and no max-pooling; Adam with
    a learning rate of 0.001, divided by 10 after 1/2 and 3/4 of the epochs; batches of 128; the
    epoch with the best validation AUC. Unlike them: RESNET_EPOCHS epochs, not 100; one grey
    channel, not three equal ones.
    """
    images, labels = train[0], train[1][:, 0]
    validation = dataset.load(DATASET, "val", DATA_DIR)[0]
    evaluator = medmnist.Evaluator(DATASET, "val", root=DATA_DIR)
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=len(dataset.label_names(DATASET)))
    network.conv1 = nn.Conv2d(images.shape[1], 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    network = network.to(memory_format=torch.channels_last)
    optimizer, schedule = make_optimizer(network, 1e-3, RESNET_EPOCHS)
    best, scores = -1.0, None
    for epoch in range(RESNET_EPOCHS):
        network.train()
        for chosen in torch.randperm(len(images)).split(128):
            batch = dataset.to_network(images[chosen])
            classifier_step(network, optimizer, batch, labels[chosen], dtype)
        schedule.step()
        network.eval()
        auc = evaluator.evaluate(score(network, validation).numpy()).AUC
        print(f"ResNet-18, epoch {epoch + 1}/{RESNET_EPOCHS}: validation AUC {auc:.3f}")
        if auc > best:
            best, scores = auc, score(network, test_images).numpy()
    return scores


def read_results(path):
    """Return {(n, condition, seed): [auc, accuracy, seconds]}, empty if there is no file yet."""
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        return {
            (int(row["n"]), row["condition"], int(row["seed"])): [
                float(row[c]) for c in COLUMNS[3:]
            ]
            for row in csv.DictReader(file)
        }


def write_results(results, path):
    rows = [(*key, *values) for key, values in results.items()]
    files.write_csv(path, [dict(zip(COLUMNS, row, strict=True)) for row in rows])


def print_results(results, sizes, n_test):
    """Print the AUC of each condition, and its difference to real images only, seed by seed."""
    print(f"\nArea under the ROC curve on {n_test} real test images of {dataset.title(DATASET)}.")
    print(f"Mean (lowest to highest) of {SEEDS} seeds; difference to real alone, seed by seed.\n")
    print("| N | trained on | AUC | difference |\n| --- | --- | --- | --- |")
    for n in sizes:
        for condition in dict.fromkeys(c for size, c, _ in results if size == n):
            seeds = [seed for size, c, seed in results if (size, c) == (n, condition)]
            aucs = {seed: results[n, condition, seed][0] for seed in seeds}
            paired = [aucs[seed] - results[n, "real", seed][0] for seed in seeds]
            not_paired = condition in ("real", "real, ResNet-18")  # the latter: another network
            difference = "" if not_paired else compare.mean_and_range(paired, "+.3f")
            auc = compare.mean_and_range(aucs.values(), ".3f")
            print(f"| {n:,} | {condition} | {auc} | {difference} |")


def print_images(train, test, sizes, dtype, out):
    """Print metrics of the synthetic images of seed 0, on two kinds of features.

    The second kind is that of the classifier trained on all real images with seed 0.
    """
    path = out / "classifier.pt"
    halves = metrics.split_real(torch.arange(len(train[0])), METRIC_IMAGES)
    if halves is None or not path.exists():
        print('\nno metrics of the synthetic images: they need "all" in SIZES and 40 real images')
        return
    classifier = SmallNetwork(train[0].shape[1], len(dataset.label_names(DATASET))).eval()
    classifier.load_state_dict(torch.load(path, weights_only=True))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    chosen, rest = halves
    real, n = train[0][chosen], len(chosen)
    mean, basis = metrics.fit_features(train[0])
    sets = {"other real images": (train[0][rest], train[1][rest, 0])}
    sets["Gaussian of their pixels"] = (metrics.gaussian_reference(train[0], n), None)
    for size in sizes:
        learned = choose(*train, size, 0)
        generator = train_gan(learned, size, 0, dtype, out)
        sets[f"synthetic, N {size:,}"] = draw(generator, learned[1], 0, n=n)

    def pca_features(images):
        return metrics.features(images, mean, basis)

    def classifier_features(images):
        with torch.inference_mode():
            batches = dataset.to_network(images).split(256)
            return torch.cat([classifier.features(batch) for batch in batches])

    kinds = {
        "the first 64 principal components of the pixels": pca_features,
        "the 128 features of the classifier trained on all real images, "
        f"SHA-256 {sha256}": classifier_features,
    }
    for title, features in kinds.items():
        print(f"\n{n} images of each kind against {n} real training images, on {title}:\n")
        print("| images | precision | recall | coverage | Frechet distance |")
        print("| --- | --- | --- | --- | --- |")
        a = features(real)
        for name, (images, _) in sets.items():
            b = features(images)
            shares = [f(a, b) for f in (metrics.precision, metrics.recall, metrics.coverage)]
            numbers = [f"{share:.2f}" for share in shares]
            print(f"| {name} | {' | '.join(numbers)} | {metrics.frechet_distance(a, b):.3g} |")
    print("\nShare of images in which that classifier finds their label, or the one drawn for:\n")
    for name, (images, labels) in sets.items():
        if labels is not None:
            accuracy = (score(classifier, images).argmax(dim=1) == labels).double().mean()
            print(f"- {name}: {accuracy:.1%}")
    print("\nMemorisation ratio, with the N training images; 0 for copies, 1 for test images:\n")
    for size in sizes:
        learned = choose(*train, size, 0)[0]
        found = metrics.memorisation(sets[f"synthetic, N {size:,}"][0], learned, test[0])
        print(f"- N {size:,}: {found['ratio']:.2f}")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    try:
        main(settings.override(globals()))
    except KeyboardInterrupt:
        print("\ninterrupted; to resume, run the same command again")
        sys.exit(130)
