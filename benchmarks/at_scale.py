"""Train as long as a run on ChestMNIST takes, on as many phantoms, and evaluate it on the way.

    python benchmarks/at_scale.py               78,468 images, 50 epochs: 61,300 steps
    python benchmarks/at_scale.py --EPOCHS=5    the first 6,130; with more EPOCHS it goes on

Prints the second table of docs/RESULTS.md, "Long runs". What is drawn, trained or evaluated already
is not done again, so the same command goes on after an interruption. Every constant below can be
changed here or on the command line.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tools

from common import checkpoint, files, metrics, runs, sampling, settings
from common.data import dataset, phantom
from common.data.dataset import DataFile
from report import detective, fine_detail

# --- Training ---
N_TRAIN = 78468  # phantoms to train on; ChestMNIST has as many images [1000 to 1000000]
EPOCHS = 50  # of the run [1 to 100000]
SEED = 0  # of the run [0 to 1000000]

# --- Metrics ---
EVALUATE_EPOCHS = 5  # epochs between two evaluations [1 to 100000]
N_IMAGES = 2354  # synthetic and held-out images to compare [100 to 20000]
DRAWS = 3  # sets of N_IMAGES synthetic ones for the Frechet distance [1 to 100]

# --- Files ---
OUT = "images/benchmarks/at_scale"  # folder of the data, the run and its numbers


def main():
    out = Path(OUT)
    data = out / "data" / "phantom.npz"
    if not data.exists():
        draw_phantoms(data)
    constants = {"DATASET": "phantom", "DATA_DIR": data.parent, "MODELS_DIR": out / "models"}
    constants |= {"IMAGES_DIR": out / "images", "RUN_NAME": f"seed-{SEED}", "EPOCHS": EPOCHS}
    constants |= {"SEED": SEED, "SNAPSHOT_EPOCHS": EVALUATE_EPOCHS}
    tools.train(**constants)
    print_table(evaluate(out / "models" / f"seed-{SEED}", DataFile("phantom", data.parent)))


def draw_phantoms(path):
    """Write N_TRAIN training and 2 N_IMAGES test phantoms in MedMNIST's layout."""
    print(f"drawing {N_TRAIN + 2 * N_IMAGES:,} phantoms into {path}, once ...")
    arrays = {}
    for seed, (split, n) in enumerate({"train": N_TRAIN, "val": 1, "test": 2 * N_IMAGES}.items()):
        images, labels = phantom.make_split(n, seed=100 + seed)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    with files.atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def evaluate(folder, data):
    """Return a row for each snapshot and, as the last, one of other held-out phantoms."""
    held_out, _ = dataset.read_split(data, "test")
    real, other = held_out[:N_IMAGES], held_out[N_IMAGES:]
    train_images, _ = dataset.read_split(data, "train")
    reference = metrics.fit_reference(train_images, real)
    history = checkpoint.load(folder / "checkpoint.pt", checkpoint.CHECKPOINT)["history"]
    history = {row["epoch"]: row for row in history}
    rows = []
    for epoch, path in {**runs.find_snapshots(folder), "real": None}.items():
        result = folder / f"evaluation_{epoch}_{N_IMAGES}x{DRAWS}.json"
        if not result.exists():
            print(f"evaluating {path or 'other held-out phantoms'} ...")
            draws = [other]
            if path:
                generator = checkpoint.load_generator(path)
                seeds = range(1, DRAWS + 1)
                draws = [sampling.sample(generator, {}, N_IMAGES, seed) for seed in seeds]
            scores = [metrics.evaluate(reference, images) for images in draws]
            row = scores[0] | {"frechet": [score["frechet"] for score in scores]}
            images = draws[0]
            row["fine detail"] = list(fine_detail.distance(real, images).values())
            row["detective"] = [
                [found["pixels"], found["trained_on"], found["accuracy"]]
                for found in detective.detective(real, images)
            ]
            files.write(result, json.dumps(row).encode())
        row = json.loads(result.read_text())
        trained = history.get(epoch, {})
        rows.append(row | {name: trained.get(name) for name in ("step", "d_real", "d_fake")})
    return rows


def print_table(rows):
    """Print a markdown table, a line for each row."""
    found = [f"{pixels} px, {few:,}" for pixels, few, _ in rows[0]["detective"]]
    heads = ["steps", "D(x), D(G(z))", "precision, recall, coverage", "Frechet", "fine detail"]
    print()
    tools.print_head(*heads, *found)
    for row in rows:
        trained = row["step"] is not None
        cells = [f"{row['step']:,}" if trained else "other phantoms"]
        cells += [f"{row['d_real']:.2f}, {row['d_fake']:.2f}" if trained else ""]
        scores = [row[key] for key in ("precision", "recall", "coverage")]
        cells += [", ".join(f"{score:.2f}" for score in scores)]
        cells += [tools.mean_and_range(row["frechet"], ".2f")]
        cells += [", ".join(f"{distance:.1f}" for distance in row["fine detail"])]
        cells += [f"{accuracy:.3f}" for _, _, accuracy in row["detective"]]
        tools.print_row(*cells)
    print(
        f"\n{N_TRAIN:,} phantoms, {EPOCHS} epochs, seed {SEED}; {N_IMAGES:,} synthetic against as "
        f"many held-out phantoms, Frechet distance of {DRAWS} draws: mean (range); detective: "
        f"accuracy by pixels a side and training images of each kind. {tools.source()}"
    )


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    settings.override(globals())
    main()
