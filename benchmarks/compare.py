"""Train three recipes on the same images for the same time, and compare their synthetic images.

    python benchmarks/compare.py                                   all three
    python benchmarks/compare.py --RECIPES=ours,pytorch_example    without TensorFlow

Prints the table of docs/RESULTS.md, "Two tutorials". The recipes are in recipes.py; TensorFlow
comes with pip install -r requirements-bench.txt. Each recipe has its own process. They train in
turns while the others sleep, so that other load on the machine affects all of them equally.
Training time is counted, the time for imports, building, compilation and drawing is not. After each
turn a recipe draws images from fixed latents; at the end common/metrics.py compares them with real
ones. For Linux and macOS.

Every constant below can be changed here or on the command line.
"""

import importlib.util
import itertools
import json
import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import recipes
import tools

from common import files, settings
from common.errors import UserError

# torch is imported inside functions: the process of the Keras recipe must not load it.

# --- Data ---
DATASET = "pneumoniamnist"  # a 2-D MedMNIST data set of grey images, or "phantom"
DATA_DIR = "data"  # folder of the .npz files

# --- Training ---
RECIPES = "ours,keras_tutorial,pytorch_example"  # which to train, in this order
MINUTES = 6.0  # training time of each recipe, minutes [0.001 to 10000.0]
TURN_SECONDS = 15.0  # training time of a turn, after which images are drawn [0.01 to 10000.0]
DEVICE = "cpu"  # that all recipes train on ["auto", "cpu", "cuda"]
SEED = 0  # of the weights, the latents and the choice of real images [0 to 2147483647]

# --- Metrics ---
N_IMAGES = 2000  # drawn and compared; at most half the training images [64 to 20000]

# --- Files ---
OUT = "images/benchmarks/compare"  # folder of the table, the plots and the drawn images

# --- Set by the program for the processes that it starts ---
RECIPE = ""  # the one to train ["", "ours", "keras_tutorial", "pytorch_example"]

LEVELS = (0.5, 0.85, 0.9)  # of coverage, for which the table says when they are first reached
TITLES = {
    "ours": "ours",
    "keras_tutorial": "Keras tutorial",
    "pytorch_example": "PyTorch example",
}


def train_in_turns():
    """The process of one recipe: train and draw for each request on stdin, wait otherwise.

    A request is a line of JSON, {"seconds": training time, "n": images to draw, "path": file for
    them}; so is each answer. A first line gives the recipe's "weights" and "dtype".
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print to stdout, too
    with np.load(Path(DATA_DIR) / f"{DATASET}.npz") as arrays:
        recipe = getattr(recipes, RECIPE)(arrays["train_images"], DEVICE, SEED)
    about = {key: recipe[key] for key in ("weights", "dtype")}
    print(json.dumps(about), file=answers, flush=True)
    for line in iter(sys.stdin.readline, ""):
        request, steps = json.loads(line), 0
        start = perf_counter()
        while perf_counter() - start < request["seconds"]:
            loss = recipe["step"]()
            steps += 1
        loss = float(loss)  # waits for a GPU, so before the clock is read
        seconds = perf_counter() - start
        if not np.isfinite(loss):
            raise UserError(f"the losses of the recipe {RECIPE} are no longer finite")
        shape = (request["n"], recipe["latent_dim"])
        latents = np.random.default_rng(SEED).standard_normal(shape, dtype=np.float32)
        with files.atomic_write(request["path"]) as file:
            np.save(file, recipe["draw"](latents))
        answer = {"seconds": seconds, "steps": steps, "images": steps * recipe["batch"]}
        answer["peak_memory_mb"] = tools.megabytes(resource.getrusage(resource.RUSAGE_SELF))
        print(json.dumps(answer), file=answers, flush=True)


def main():
    """Check the settings, train the recipes, compute the metrics, write table and plots."""
    names = list(dict.fromkeys(RECIPES.split(",")))
    if not set(names) <= set(TITLES):
        raise UserError(f"RECIPES={RECIPES}: legal are {', '.join(TITLES)}, with commas between")
    if "keras_tutorial" in names and importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            "the recipe keras_tutorial needs TensorFlow: pip install -r requirements-bench.txt, or "
            "leave it out with --RECIPES=ours,pytorch_example"
        )
    import torch

    from common import hardware, metrics, runs
    from common.data import dataset, jpeg
    from report import fine_detail, membership

    device = hardware.choose_device(DEVICE)
    images, _, source = dataset.load(DATASET, "train", DATA_DIR)
    held_out, _, _ = dataset.load(DATASET, "test", DATA_DIR)
    n = min(N_IMAGES, len(images) // 2)
    if images.shape[1] != 1 or n < 64:
        raise UserError(f"{source}: the recipes need at least 128 images, and grey ones")
    out = Path(OUT)
    if out.exists():
        print(f"the earlier results are now called {runs.archive(out)}")

    turns = max(1, round(60 * MINUTES / TURN_SECONDS))
    print(f"{dataset.title(DATASET)} from {source}")
    print(tools.machine(device))
    print(f"{turns} turns of {TURN_SECONDS:g} s for each of {', '.join(names)}")
    rows, about = take_turns(names, turns, n, out, device)

    chosen, rest = metrics.split_real(torch.arange(len(images)), n, SEED)
    real, others = images[chosen], images[rest]
    reference = metrics.fit_reference(images, real, SEED)
    quality = jpeg.find_quality(images)
    last = {}  # recipe: the images of its last turn
    for name, turns in rows.items():
        for row in turns:
            last[name] = torch.from_numpy(np.load(row.pop("path")))
            if quality:  # ours draws them so already
                last[name] = jpeg.compress(last[name], quality)
            row |= metrics.evaluate(reference, last[name])

    def slow_metrics(synthetic, train):
        """Those that take too long to compute after each turn."""
        fine = fine_detail.distance(real, synthetic, SEED)
        return {"fine_detail": fine[28]} | membership.memorisation(synthetic, train, held_out)

    for name, turns in rows.items():
        turns[-1] |= slow_metrics(last[name], images)
    baselines = {"other real images": others}
    if "pytorch_example" in names:
        baselines["the same, to 64x64 and back"] = recipes.enlarge_and_shrink(others)
    baselines["Gaussian, mean and covariance"] = metrics.gaussian_reference(images, n, SEED)
    # Without the others, each of which would be a copy of itself.
    train = images[~torch.isin(torch.arange(len(images)), rest)]
    for title, baseline in baselines.items():
        numbers = metrics.evaluate(reference, baseline) | slow_metrics(baseline, train)
        baselines[title] = numbers

    text = "\n".join(table(rows, about, baselines))
    text += (
        f"\n\n{dataset.title(DATASET)}, {len(images):,} training images. The same training time "
        f"for each, in turns of {TURN_SECONDS:g} s. Speed and its ratio: median (range) of the "
        f"turns. Quality: after the last turn, N = {n:,}, k = {metrics.K}, seed {SEED}. Memorised: "
        f"share as near to a training image as the nearest 1 % of {len(held_out):,} held-out "
        f"images, for which it is 0.01. {tools.source(device)}\n"
    )
    print(text)
    files.write(out / "compare.md", text.encode())
    files.write_csv(out / "compare.csv", [*itertools.chain(*rows.values())])
    draw(out, rows, baselines["other real images"], last, dataset.title(DATASET))


def take_turns(names, turns, n, out, device):
    """Train the recipes, one at a time.

    Returns {recipe: a dict for each turn} and {recipe: {"weights": [G, D], "dtype": string}}.
    """
    command = [sys.executable, __file__, *sys.argv[1:], f"--DEVICE={device.type}"]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    children, about, rows = {}, {}, {name: [] for name in names}

    def answer(name):
        line = children[name].stdout.readline()
        if not line:
            raise UserError(f"the recipe {name} has ended early; its error is above")
        return json.loads(line)

    try:
        for name in names:  # before this process grows: Linux counts its memory as theirs
            children[name] = subprocess.Popen([*command, f"--RECIPE={name}"], **streams)
            about[name] = answer(name)
        for turn in range(1, turns + 1):
            for name in names:
                path = str(out / "samples" / f"{name}_{turn:04d}.npy")
                request = {"seconds": TURN_SECONDS, "n": n, "path": path}
                children[name].stdin.write(json.dumps(request) + "\n")
                children[name].stdin.flush()
                row = {"turn": turn, "recipe": name, "path": path} | answer(name)
                row["images_per_second"] = row["images"] / row["seconds"]
                for key in ("seconds", "steps", "images"):  # from here on summed over the turns
                    row[key] += rows[name][-1][key] if rows[name] else 0
                rows[name].append(row)
                print(f"turn {turn}/{turns}, {name}: {row['images_per_second']:.1f} images/s")
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    return rows, about


def table(rows, about, baselines):
    """Return a markdown table, a string per line: the recipes, and below them the baselines."""
    heads = ["recipe", "weights G + D", "images/s", "ratio to Keras", "steps"]
    heads += [f"s to coverage {level}" for level in LEVELS]
    heads += ["precision", "recall", "coverage", "Frechet", "fine detail, 28 px", "memorised"]
    lines = [[*heads, "peak memory, MB"], ["---"] * (len(heads) + 1)]
    for name, turns in rows.items():
        weights = " + ".join(f"{count:,}" for count in about[name]["weights"])
        speeds, last = [row["images_per_second"] for row in turns], turns[-1]
        ratio = "1" if name == "keras_tutorial" else ""
        if "keras_tutorial" in rows and not ratio:
            theirs = [row["images_per_second"] for row in rows["keras_tutorial"]]
            ratio = tools.median_and_range(
                [a / b for a, b in zip(speeds, theirs, strict=True)], ".2f"
            )
        times = [[r["seconds"] for r in turns if r["coverage"] >= level] for level in LEVELS]
        none = f"not reached in {last['seconds']:.0f}"
        reached = [f"{seconds[0]:.0f}" if seconds else none for seconds in times]
        line = [f"{TITLES[name]}, {about[name]['dtype']}", weights]
        line += [tools.median_and_range(speeds, ".0f"), ratio]
        line += [f"{last['steps']:,}", *reached, *quality(last), f"{last['peak_memory_mb']:,.0f}"]
        lines.append(line)
    lines += [
        [f"*{title}*", *[""] * (4 + len(LEVELS)), *quality(row), ""]
        for title, row in baselines.items()
    ]
    return [f"| {' | '.join(line)} |" for line in lines]


def quality(row):
    shares = [f"{row[key]:.2f}" for key in ("precision", "recall", "coverage", "frechet")]
    return [*shares, f"{row['fine_detail']:.0f}", f"{row['share']:.3f}"]


def draw(out, rows, real_vs_real, last, title):
    """Draw coverage and Frechet distance over training time, and images of the last turn."""
    from report import plotting

    def draw_curves():
        heading = f"{title}: {len(next(iter(last.values()))):,} synthetic and as many real images"
        figure, axes = plotting.over_epochs(heading)
        for panel, key in zip(axes, ("coverage", "frechet"), strict=True):
            for name, turns in rows.items():
                seconds, values = [row["seconds"] for row in turns], [row[key] for row in turns]
                look = {"color": f"C{[*TITLES].index(name)}", "marker": "o", "markersize": 3}
                panel.plot(seconds, values, label=TITLES[name], **look)
            look = {"color": "grey", "linestyle": "--", "linewidth": 0.8}
            panel.axhline(real_vs_real[key], label="other real", **look)
        axes[0].set(ylabel="coverage (share of images)", ylim=(-0.02, 1))
        axes[1].set(ylabel="Frechet distance", xlabel="training time (s)")
        axes[1].set_xlim(left=0)
        plotting.logarithmic(axes[1])
        plotting.legend(axes[0])
        return figure

    plotting.save_curves(out / "compare", draw_curves, "")
    cells = [(TITLES[name], plotting.tile(images[:64], 8)) for name, images in last.items()]
    seconds = len(rows[next(iter(rows))]) * TURN_SECONDS
    heading = f"{title}\nsynthetic images after {seconds:g} s of training each"
    path = out / "compare_samples.png"
    plotting.write_png(path, plotting.compose(heading, cells, len(cells), scale=2))


if __name__ == "__main__":
    settings.override(globals())
    try:
        train_in_turns() if RECIPE else main()
    except KeyboardInterrupt:
        sys.exit(130)
