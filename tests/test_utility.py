"""Do synthetic images help: the benchmark fills its tables, and goes on where it stopped."""

import csv
from pathlib import Path

import numpy as np
import torch

OUT = Path("images/benchmarks/utility")
TINY = ["--SIZES=20,all", "--MORE_AT=20", "--SEEDS=1", "--GAN_STEPS=2", "--SYNTHETIC=64"]
TINY += ["--STEPS=4", "--RESNET_EPOCHS=1", "--METRIC_IMAGES=50"]


def results():
    with open(OUT / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_benchmark_fills_its_table_and_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 130), ("val", 20), ("test", 60)):
        arrays[f"{split}_labels"] = (np.arange(n) % 4 > 0).astype(np.uint8)[:, None]
        noise = random.integers(0, 128, (n, 28, 28), np.uint8)
        arrays[f"{split}_images"] = noise + 100 * arrays[f"{split}_labels"][:, :, None]
    Path("data").mkdir()
    np.savez("data/pneumoniamnist.npz", **arrays)

    done = run("benchmarks/utility.py", *TINY)
    assert done.status == 0, done.text
    rows = results()
    assert len(rows) == 9 + 4 + 1  # at the N of MORE_AT, at all, and the ResNet-18
    assert all(0 <= float(row["auc"]) <= 1 for row in rows)
    for row in rows:
        line = f"| {row['n']} | {row['condition']} | {float(row['auc']):.3f} |"
        assert line in done.text
    assert "| synthetic, N 130 |" in done.text and "SHA-256" in done.text
    weights = torch.load(OUT / "generator_20_0.pt", weights_only=True)
    assert weights["embed.weight"].shape[1] == 2  # the labels were learned

    lines = (OUT / "results.csv").read_text().splitlines()
    (OUT / "results.csv").write_text("\n".join(lines[:-2]) + "\n")
    again = run("benchmarks/utility.py", *TINY)
    assert again.text.count(", seed 0: AUC") == 2  # the others were there already
    for before, after in zip(rows, results(), strict=True):
        assert {**before, "seconds": 0} == {**after, "seconds": 0}

    other = run("benchmarks/utility.py", *TINY[:-1], "--METRIC_IMAGES=40")
    assert other.status == 1 and "other settings" in other.text
    wrong = run("benchmarks/utility.py", "--SIZES=20,many", "--OUT=elsewhere")
    assert wrong.status == 1 and "SIZES=20,many: legal are" in wrong.text
