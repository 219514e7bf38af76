"""Draw synthetic images with a trained run into a folder that other programs can load.

    python generate_images.py                                      as many as there are real ones
    python generate_images.py --LABELS=pneumonia --N_IMAGES=1000   of one finding
    python generate_images.py --FORMAT=png --OUT=my_pictures       pictures and a table of labels

The .npz has MedMNIST's layout and the data set's name: medmnist's classes load it in place of the
real file. Every constant below can be changed here or on the command line.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # PYTHONSAFEPATH leaves it out
from common import script

if __name__ == "__main__":
    script.prepare()  # before torch, which takes seconds

import csv
import functools
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from common import checkpoint, files, runs, sampling
from common.data import dataset
from common.data.labels import (
    NO_FINDING,
    decode_labels,
    draw_labels,
    is_multilabel,
    label_names,
    single_labels,
)
from common.data.layout import same_label
from common.errors import UserError
from common.threads import choose_threads

# --- Run ---
RUN_NAME = ""  # folder in MODELS_DIR; empty: the run trained last
MODELS_DIR = "models"  # where train_model.py keeps its runs
EPOCH = "last"  # to draw from: "last", "best" (the one with the highest score) or a number

# --- Images ---
N_IMAGES = 0  # how many; 0: as many as the whole data set has for training [0 to 10000000]
LABELS = "as in the training set"  # or a finding, or several in one image: "effusion+mass"
SEED = 0  # of the latents and the labels; the same seed gives the same bytes [0 to 2147483647]

# --- Files ---
FORMAT = "npz"  # npz: MedMNIST's layout; png: pictures and labels.csv ["npz", "png"]
VAL_AND_TEST = "empty"  # of the .npz; real: copied from the data set's file ["empty", "real"]
DATA_DIR = ""  # folder of that file; empty: the one the run was trained from
IMAGES_DIR = "images"  # where generate_report.py writes, too
OUT = ""  # a folder that does not exist yet; empty: IMAGES_DIR/RUN_NAME/export

# --- Hardware ---
THREADS = 0  # 0: what is faster now, by the cores that are idle [0 to 1024]

_AS_TRAINED = "as in the training set"


def main():
    folder = runs.find_run(MODELS_DIR, RUN_NAME)
    path = folder / "checkpoint.pt"
    saved = run = checkpoint.load(path, checkpoint.CHECKPOINT)
    if EPOCH != "last":
        snapshots = runs.find_snapshots(folder)
        path = snapshots[runs.choose_epoch(EPOCH, snapshots, run["history"])]
        saved = checkpoint.load(path, checkpoint.SNAPSHOT)
    name, size = saved["settings"]["DATASET"], saved["settings"]["SIZE"]
    label_counts, about_labels = choose_labels(saved, folder)
    generator = checkpoint.rebuild_generator(saved, path)
    choose_threads(THREADS, lambda: sampling.sample(generator, label_counts, 64, SEED))
    n_whole = saved["info"]["n_samples"]["train"]
    n = N_IMAGES or n_whole
    real = {}
    if VAL_AND_TEST == "real":
        if FORMAT == "png":
            raise UserError('VAL_AND_TEST=real: legal with FORMAT=png is "empty"')
        real = load_real(run)

    pictures = runs.run_folder(IMAGES_DIR, folder.name)
    out = Path(os.path.normpath(OUT)) if OUT else pictures / "export"
    with files.new_folder(out) as hidden:
        print(f"run        {folder}, {path.name}, {describe_epoch(saved)}")
        print(f"labels     {about_labels}")
        print(f"images     {n:,} to {out}")
        if FORMAT == "npz":
            write_npz(
                dataset.DataFile(name, hidden, size).path, generator, label_counts, n, saved, real
            )
        else:
            write_pngs(hidden, generator, label_counts, n, saved)
        about = describe(saved, folder, path, n, about_labels, real)
        (hidden / "ABOUT.txt").write_text(about, "utf-8", "backslashreplace")
    pictures = f", 0000000.png to {n - 1:07d}.png ({n:,} images)" if FORMAT == "png" else ""
    print(
        f"{out}: {', '.join(sorted(p.name for p in out.iterdir() if p.suffix != '.png'))}{pictures}"
    )
    if FORMAT == "npz" and name not in dataset.NAMES:
        print(f'to load it: numpy.load("{dataset.DataFile(name, out, size).path}")')
    elif FORMAT == "npz" and name != "phantom":
        title = dataset.title(name)
        root = f'root="{out}"' if size == 28 else f'root="{out}", size={size}'
        print(f'to load it: medmnist.{title}(split="train", {root}, download=False)')
        if n != n_whole:
            print(f"medmnist's len() of it fails: it insists on {n_whole:,} images (N_IMAGES=0)")


def load_real(saved):
    """Return {split: (images, labels, source)} of the real images that are copied.

    Raises UserError if they are missing or do not go with the synthetic ones, or if the file has
    changed since the training, so that images of the training could be among them.
    """
    real, about = {}, runs.describe_data(saved)
    _, _, data = runs.load_training_images(saved, DATA_DIR)
    for split in ("val", "test"):
        part = {"size": data.size, "trained_on": about}
        images, labels, source = dataset.load(data.name, split, data.folder, **part)
        dataset.check_channels(data, split, images, saved["channels"])
        if ((labels < 0) | (labels > 255)).any():  # the export holds bytes
            span = f"{labels.min()} to {labels.max()}, not 0 to 255"
            raise UserError(f"{data.path} has {split}_labels from {span}. Use VAL_AND_TEST=empty.")
        real[split] = images, labels, source
    return real


def choose_labels(saved, folder):
    """Return the label vectors to draw and their frequencies, and a description of them.

    The first is a dict as count_labels returns. Raises UserError if the run was trained on
    no image that has one of LABELS, or if no image can have all of them.
    """
    seen, info = saved["label_counts"], saved["info"]
    if not seen:
        if LABELS != _AS_TRAINED:
            raise UserError(
                f"LABELS={LABELS}: {folder} was trained without labels. Train a run with "
                "--CONDITIONAL=True, or leave LABELS out."
            )
        return {}, "none, the run was trained without"
    if LABELS == _AS_TRAINED:
        return seen, f"as frequent and as combined as in {seen['counts'].sum():,} training images"
    legal, multilabel = single_labels(info, seen), is_multilabel(info)
    # A label in other case or of another Unicode form, as a terminal may send it, is the same one.
    names = {same_label(name): name for name in legal} | {name: name for name in legal}

    def find(text):
        return names.get(text, names.get(same_label(text)))

    given = [find(LABELS)] if find(LABELS) else [find(x) or x.strip() for x in LABELS.split("+")]
    for label in given:
        if label not in legal:
            quoted = ", ".join(f'"{word}"' for word in [_AS_TRAINED, *legal])
            mix = ", or several joined by +" if multilabel else ""
            raise UserError(
                f"LABELS={LABELS}: no training image of {folder} has the label {label!r}. "
                f"Legal are {quoted}{mix}"
            )
    if len(given) > 1 and (not multilabel or NO_FINDING in given):
        raise UserError(f"LABELS={LABELS}: no image of {dataset.title(info)} can have all of them")
    row = torch.stack([legal[label] for label in given]).amax(dim=0)
    count = int(seen["counts"][(seen["rows"] == row).all(dim=1)].sum())
    description = f"{LABELS}, exactly as in {count:,} training images"
    if count == 0:
        description = f"{LABELS}, which the network never saw together and has to combine"
    return {"rows": row[None], "counts": torch.ones(1)}, description


def label_chunks(label_counts, n):
    """Yield n label vectors, float (M, K), at most sampling.CHUNK at a time, the same each time."""
    random = torch.Generator().manual_seed(SEED + 2**31)  # not the seed of the latents
    for start in range(0, n, sampling.CHUNK):
        yield draw_labels(label_counts, min(sampling.CHUNK, n - start), random)


def draw_images(generator, label_counts, n):
    """Yield n images, uint8 (M, S, S) or (M, S, S, 3), with their M label vectors."""
    random = torch.Generator().manual_seed(SEED)
    with tqdm(total=n, unit=" images", disable=None) as bar:
        for labels in label_chunks(label_counts, n):
            latents = torch.randn(len(labels), generator.latent_dim, generator=random)
            yield dataset.to_hwc(sampling.draw(generator, latents, labels)), labels
            bar.update(len(labels))


def write_npz(path, generator, label_counts, n, saved, real):
    """Write a file in MedMNIST's layout, a chunk at a time.

    real: {split: (images, labels, source)} to copy; a split that is not in it is left empty.
    """
    info, size = saved["info"], saved["settings"]["SIZE"]
    shape = (size, size) if saved["channels"] == 1 else (size, size, 3)
    images = (chunk for chunk, _ in draw_images(generator, label_counts, n))
    labels = (decode_labels(info, vectors).numpy() for vectors in label_chunks(label_counts, n))
    columns = decode_labels(info, next(label_chunks(label_counts, 1))).shape[1]
    with zipfile.ZipFile(path, "w") as archive:
        write_array(archive, "train_images", (n, *shape), images)
        write_array(archive, "train_labels", (n, columns), labels)
        for split in ("val", "test"):
            images, labels = np.empty((0, *shape), np.uint8), np.empty((0, columns), np.uint8)
            if real:
                images = dataset.to_hwc(real[split][0])
                labels = real[split][1].to(torch.uint8).numpy()
            write_array(archive, f"{split}_images", images.shape, [images])
            write_array(archive, f"{split}_labels", labels.shape, [labels])


def write_array(archive, name, shape, chunks):
    """Write uint8 arrays, one after the other, as one array of this shape into an .npz."""
    # A fixed date, so that the same seed gives the same bytes.
    member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with archive.open(member, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(chunk.tobytes())


def write_pngs(folder, generator, label_counts, n, saved):
    """Write 0000000.png ... and labels.csv: a row for each file, a column of 0 and 1 per label."""
    note = PngImagePlugin.PngInfo()
    note.add_text("Description", "synthetic image, shows no patient, not for clinical use")
    names = label_names(saved["info"]) if label_counts else []
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", *names])
        number = 0
        for images, labels in draw_images(generator, label_counts, n):
            for image, row in zip(images, labels.int().tolist(), strict=True):
                Image.fromarray(image).save(folder / f"{number:07d}.png", pnginfo=note)
                table.writerow([f"{number:07d}.png", *row])
                number += 1


def describe_epoch(saved):
    """Return in words which epoch a checkpoint or a generator of an epoch is from."""
    unfinished = saved.get("images_seen")  # which the latter lacks
    return f"unfinished epoch {saved['epoch'] + 1}" if unfinished else f"epoch {saved['epoch']}"


def describe(saved, folder, path, n, about_labels, real):
    """Return the text of ABOUT.txt: what the images are, and how to draw them again."""
    trained, info = saved["settings"], saved["info"]
    size = trained["SIZE"]
    where = {"RUN_NAME": folder.name, "MODELS_DIR": MODELS_DIR, "IMAGES_DIR": IMAGES_DIR}
    wrap = functools.partial(textwrap.fill, width=100, subsequent_indent=" " * 12)
    names = [f"{number} {name}" for number, name in enumerate(label_names(info))]
    kept = [f"{key}={value!r}" for key, value in trained.items() if not key.endswith("_DIR")]
    lines = [
        "SYNTHETIC IMAGES. NOT FOR CLINICAL USE.",
        "Drawn by a generative adversarial network. They show no patient, and nothing about them",
        "is a finding. The labels are those that the network was asked to draw.",
        "",
        f"images      {n:,} of {size}x{size}x{saved['channels']}",
        f"labels      {about_labels}",
        *([wrap(f"names       {', '.join(names)}")] if saved["label_counts"] else []),
        f"seed        {SEED}, drawn {sampling.chunk(size)} at a time",
        f"run         {folder.name}, {describe_epoch(saved)} of {trained['EPOCHS']}",
        f"checkpoint  {path.name}, SHA-256 {saved['file_sha256']}",
        f"made by     generate_images.py, torch {torch.__version__}",
        f"learned     {dataset.title(info)}, training split",
        wrap(f"settings    {', '.join(kept)}"),
    ]
    if quality := saved["model_args"]["generator"].get("jpeg"):
        lines.append(f"compressed  as JPEG of quality {quality}, as what it learned from was")
    if FORMAT == "npz":
        lines += ["", "train_images and train_labels are synthetic."]
        if real:
            lines.append("val_ and test_ arrays are REAL, copied so that models can be tested:")
            lines += [f"  {split}: {source}" for split, (_, _, source) in real.items()]
        else:
            lines.append(
                "val_ and test_ arrays are empty: results have to be tested on real images."
            )
    lines += [
        "",
        "Do they reveal whose images were trained on? An empirical check, not a guarantee, is in",
        'the report, under "Who was in the training set?":',
        f"  {script.command('generate_report.py', **where)}",
        "Pass on images or generator_epoch_....pt, and keep checkpoint.pt: it holds the",
        "discriminator, to which every training image was shown again and again.",
    ]
    if "license" in info:
        lines += ["", f"The images learned from are MedMNIST's, {info['license']}; to be cited:"]
        lines.append("Yang et al. MedMNIST v2. Scientific Data 10, 41 (2023), and their sources")
        lines.append("as medmnist.com names them.")
    elif trained["DATASET"] not in dataset.NAMES:
        lines += ["", f"The images learned from are {dataset.OWN}: their licence and what is to be"]
        lines.append("cited for them are known to whoever trained the run.")
    else:
        lines += [
            "",
            "The images learned from were drawn by a program: they show no patient either.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    script.run(lambda constants: main(), globals())
