"""The page of the report as its reader sees it: whole, self-contained, and true."""

import base64
import csv
import io
import re
import signal
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rewrite, signal_in_step, write_phantoms
from PIL import Image

from common import metrics
from common.data import dataset, phantom
from common.data.labels import NO_FINDING
from report import fine_detail, membership, sections

SECTIONS = ["about", "collage", "blind_test", "training", "numbers", "detective"]
SECTIONS += ["diversity", "copies", "latent_space", "failures"]
VOID = {"meta", "img", "br", "source"}


def only(*names):
    """The options that turn off all parts of the report but these."""
    return [f"--{name.upper()}=False" for name in [*SECTIONS[1:], "play"] if name not in names]


class Page(HTMLParser):
    """What is in a page; parsing fails where its tags are not closed in order."""

    def __init__(self, path):
        super().__init__()
        self.html = Path(path).read_text(encoding="utf-8")
        self.open, self.tags, self.values, self.text = [], [], {}, ""
        self.feed(self.html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(self.tags[-1])
        if tag == "data":  # the numbers of a row of a table are kept under its id
            row = [attributes.get("id") for tag, attributes in self.open if tag == "tr"]
            name = row[0] if row else None
            self.values.setdefault(name, []).append(float(dict(attributes)["value"]))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] not in ("style", "title"):
            self.text += data
        if self.open and "file" in self.open[-1][1].get("class", ""):
            self.tags.append(("file", data))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def pictures(self, alt=""):
        """The greys (H, W) of the pictures, but for curves, whose alternative text has this."""
        found = [image["src"] for image in self.all("img") if alt in image["alt"]]
        found = [source for source in found if "svg" not in source[:20]]
        content = [base64.b64decode(source.split(",")[1]) for source in found]
        return [np.asarray(Image.open(io.BytesIO(x)).convert("LA"))[:, :, 0] for x in content]


@pytest.fixture
def page(reported):
    return Page(reported / "images/phantom/report.html")


@pytest.fixture
def training_images(phantom_dir):
    return dataset.load("phantom", folder=phantom_dir, fraction=0.02)[0]


def test_the_page_has_all_its_parts_in_order_and_a_warning(page):
    assert [section["id"] for section in page.all("section")] == SECTIONS
    links = [link["href"] for link in page.all("a")]
    assert [f"#{name}" for name in SECTIONS] == links[: len(SECTIONS)]
    assert "Not for clinical use" in page.text[:200]
    assert "no image shows a patient" in page.text
    assert "epoch 2 of 2, the last one of the run" in page.text
    assert "LATENT_DIM" in page.text and "DATA_DIR" not in page.text


def test_the_page_is_self_contained_and_small(page):
    assert len(page.html) < 8e6
    assert not page.all("script") and not page.all("link") and "url(" not in page.html
    for image in page.all("img"):
        assert image["src"].startswith("data:image/") and image["alt"]
    for source in page.all("source"):
        assert source["srcset"].startswith("data:image/")
    for link in page.all("a"):
        assert re.match(r"#|https://(doi|arxiv)\.org/|play\.html$", link["href"])
    outside = re.sub(r'(src|srcset)="data:[^"]*"', "", page.html)
    assert outside.count("http") == sum(link["href"].startswith("http") for link in page.all("a"))
    for picture in page.pictures():
        assert np.ptp(picture) > 0, "no picture is empty"


def test_every_figure_of_the_page_is_a_file_and_every_file_is_in_the_page(reported, page):
    folder = reported / "images/phantom"
    named = set(page.all("file"))
    assert named == {path.name for path in folder.glob("*.*")} - {"report.html", "play.html"} - {
        path.name for path in folder.glob("*.pdf")
    }
    curves = {path.stem for path in folder.glob("*.pdf")}
    assert curves == {"loss", "metrics", "spectrum", "grey_levels", "distances"}
    for path in folder.glob("*.pdf"):
        assert path.read_bytes().startswith(b"%PDF")
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.info["dpi"][0] == pytest.approx(300, abs=1)


def test_the_numbers_are_those_of_the_log_and_of_the_metrics(reported, page, training_images):
    with open(reported / "models/phantom/log.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    for key in ("precision", "recall", "coverage", "frechet"):
        assert page.values[key][0] == float(last[key])

    real, others = metrics.split_real(training_images, n=1000)
    assert len(real) == 100
    reference = metrics.fit_reference(training_images, real)
    columns = (others, 1), (metrics.gaussian_reference(training_images, 100), 2)
    for images, column in columns:
        for key, number in metrics.evaluate(reference, images).items():
            assert page.values[key][column] == pytest.approx(number, abs=1e-3)
    basis = reference["mean"], reference["basis"]
    a, b = metrics.features(real, *basis), metrics.features(others, *basis)
    assert page.values["density"][1] == pytest.approx(metrics.density(a, b))
    assert page.values["kernel"][1] == pytest.approx(metrics.kernel_distance(a, b))
    detail = fine_detail.distance(real, others)
    for pixels in (28, 14, 7):
        assert page.values[f"detail_{pixels}"][1] == pytest.approx(detail[pixels])
    assert f"k = {metrics.K}" in page.text and "no FID" in page.text


def test_memorisation_is_measured_against_the_test_split(
    reported, page, training_images, phantom_dir
):
    held_out = dataset.load("phantom", "test", phantom_dir)[0]
    held_out = held_out[torch.randperm(2000, generator=torch.Generator().manual_seed(0))[:1000]]
    with np.load(reported / "images/phantom/synthetic/synthetic.npz") as arrays:
        synthetic = torch.from_numpy(arrays["images"])[:, None]
    found = membership.memorisation(synthetic, training_images, held_out)
    assert page.values["ratio"][:2] == pytest.approx([found["ratio"], 1])
    assert page.values["share"][0] == pytest.approx(found["share"])
    assert "1,000 phantoms of the test split" in page.text


def test_the_answers_of_the_blind_test_are_right(reported, page, training_images):
    tiles = page.pictures("an image, from the training set or synthetic")
    assert len(tiles) == 32
    with np.load(reported / "images/phantom/synthetic/synthetic.npz") as arrays:
        drawn = {image.tobytes() for image in arrays["images"]}
    real = {image.numpy().tobytes() for image in training_images}
    answers = {}
    for kind in ("real", "synthetic"):
        text = re.search(rf'id="answers-{kind}">([\d, ]+)<', page.html)[1]
        answers[kind] = {int(number) for number in text.split(",")}
    is_real = {n for n, tile in enumerate(tiles, start=1) if tile.tobytes() in real}
    is_drawn = {n for n, tile in enumerate(tiles, start=1) if tile.tobytes() in drawn}
    assert answers == {"real": is_real, "synthetic": is_drawn}
    assert len(is_real) == len(is_drawn) == 16
    collage = page.pictures("phantoms beside")
    shown = {
        half[y : y + 28, x : x + 28].tobytes()
        for half in collage
        for y in range(0, 204, 29)
        for x in range(0, 204, 29)
    }
    assert len(collage) == 2 and len(shown) == 128
    assert not shown & {tile.tobytes() for tile in tiles}, "the collage would give them away"


def test_near_duplicates_of_what_was_shown_are_no_riddle(training_images):
    shown, new = training_images[:64], training_images[100:110]
    twin = (shown[3:4].int() + 1).clamp(max=255).to(torch.uint8)
    chosen = sections.unseen(torch.cat([twin, shown[:2], new, new]), shown, 10)
    assert torch.equal(chosen, new)


def test_the_page_says_what_attacks_on_membership_find(page):
    """Six steps are too few to remember anything: all rows are near 0.5."""
    for row in ("images", "other", "chance", "discriminator"):
        auc, _ = page.values[f"membership-{row}"]
        assert 0.3 < auc < 0.7
    assert "keep checkpoint.pt" in page.text and "not a guarantee" in page.text


def test_a_planted_copy_is_found(run, tmp_path, monkeypatch, phantom_dir):
    """A synthetic image is put among the training images, as if it had been copied from there."""
    monkeypatch.chdir(tmp_path)
    arrays = write_phantoms(phantom_dir, 200)
    run("train_model.py", "--DATASET=phantom", "--EPOCHS=1", "--METRIC_IMAGES=0")
    options = ["--N_SYNTHETIC=10", *only("copies", "failures")]
    run("generate_report.py", *options)
    with np.load("images/phantom/synthetic/synthetic.npz") as synthetic:
        copied = synthetic["images"][7]

    arrays["train_images"][77] = copied
    write_phantoms(phantom_dir, 200, train_images=arrays["train_images"])
    images, _, _ = dataset.load("phantom")
    saved = torch.load("models/phantom/checkpoint.pt", weights_only=True)
    rewrite("models/phantom/checkpoint.pt", saved | {"data_sha256": dataset.sha256(images)})
    assert run("generate_report.py", *options).status == 0

    page = Page("images/phantom/report.html")
    pairs = [image["alt"] for image in page.all("img") if "above a synthetic" in image["alt"]]
    pictures = page.pictures("above a synthetic")
    assert len(pairs) == 20  # ten in each part, so all of them
    for place in (0, -1):  # the nearest of all, and the last of those furthest out
        assert pairs[place].startswith("0.0\nno. 7: ")
        assert np.array_equal(pictures[place][:28], copied)
        assert np.array_equal(pictures[place][-28:], copied), "the copy and its original"
    assert not any(pair.startswith("0.0") for pair in pairs[1:-1])


def test_slerp_keeps_the_length_and_goes_at_an_even_pace():
    a, b = torch.randn(2, 8, 100, generator=torch.Generator().manual_seed(1)).double()
    b = b * (a.norm(dim=1) / b.norm(dim=1))[:, None]
    path = torch.stack([sections.slerp(a, b, t / 10) for t in range(11)])
    assert torch.allclose(path[0], a) and torch.allclose(path[-1], b)
    assert torch.allclose(path.norm(dim=2), a.norm(dim=1).expand(11, -1))
    steps = (path[1:] - path[:-1]).norm(dim=2)
    assert torch.allclose(steps, steps[0].expand_as(steps))
    longer = sections.slerp(a, 3 * b, 0.5)
    assert torch.allclose(longer.norm(dim=1), 2 * a.norm(dim=1)), "else it goes evenly to the other"
    for same in (a, -a):  # on one line there is no circle
        assert sections.slerp(a, same, 0.5).isfinite().all()


def test_each_part_can_be_turned_off(run, reported, monkeypatch):
    monkeypatch.chdir(reported)
    for kept in (set(), {"numbers"}, {"copies"}, {"failures"}):
        out = f"only-{'-'.join(kept)}"
        result = run("generate_report.py", f"--IMAGES_DIR={out}", *only(*kept))
        assert result.status == 0, result.text
        page = Page(f"{out}/phantom/report.html")
        assert [section["id"] for section in page.all("section")] == ["about", *kept]
        assert "Not for clinical use" in page.text
        named = {path.name for path in Path(out, "phantom").glob("*.png")}
        assert named == set(page.all("file"))


def test_the_page_says_which_epoch_it_shows(run, reported, monkeypatch):
    monkeypatch.chdir(reported)
    run("generate_report.py", "--IMAGES_DIR=first", "--EPOCH=1", *only())
    assert "epoch 1 of 2, the one that was asked for" in Page("first/phantom/report.html").text


def test_a_run_without_metrics_gets_a_page_without_their_curves(run, train):
    train("--EPOCHS=1", "--METRIC_IMAGES=0")
    options = ["--RUN_NAME=phantom", *only("training", "numbers")]
    assert run("generate_report.py", *options).status == 0
    page = Page("images/phantom/report.html")
    assert "metrics.png" not in page.all("file") and "loss.png" in page.all("file")
    # The report measures what the log lacks, on the images that training would have measured.
    train("--EPOCHS=1", name="measured")
    with open("models/measured/log.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    for key in ("precision", "recall", "coverage", "frechet"):
        assert page.values[key][0] == pytest.approx(float(last[key]), abs=1e-3)


def test_a_conditional_run_shows_each_label_beside_phantoms_that_have_it(run, train):
    small = train("--CONDITIONAL=True", "--EPOCHS=1")
    assert run("generate_report.py", *only("numbers", "latent_space", "failures")).status == 0
    page = Page("images/phantom/report.html")
    parts = ["about", "by_label", "numbers", "latent_space", "failures"]
    assert [section["id"] for section in page.all("section")] == parts
    rows = re.findall(r'"label-.*<b>(.*?)</b></th><td>(\d+)</td>', page.html)
    folder = small[1].split("=")[1]
    images, labels, _ = dataset.load("phantom", folder=folder, fraction=0.02)
    has = {name: column.sum() for name, column in zip(phantom.LABELS, labels.T, strict=True)}
    assert dict(rows) == {
        **{name: str(int(n)) for name, n in has.items()},
        NO_FINDING: str(int((labels == 0).all(1).sum())),
    }
    assert len(page.pictures("for each label")) == 2 * len(rows)

    # The numbers over all labels are drawn as in training, so they are those of the log.
    with open("models/phantom/log.csv", newline="") as file:
        assert page.values["coverage"][0] == float([*csv.DictReader(file)][-1]["coverage"])


@pytest.mark.parametrize("step", [1, 4])  # in the first and in the second epoch
def test_the_page_of_an_unfinished_run_says_so(run, small, step):
    with signal_in_step(step, signal.SIGINT):
        run("train_model.py", *small, "--EPOCHS=9")
    options = ["--N_SYNTHETIC=10", *only("blind_test", "training", "numbers")]
    assert run("generate_report.py", *options).status == 0
    page = Page("images/phantom/report.html")
    assert f"This run is unfinished: {step // 4} of 9 epochs are done" in page.text
    assert f"in epoch {step // 4 + 1} of 9, unfinished" in page.text
    assert ("No epoch is finished yet" in page.text) == (step == 1)
    assert "too few images for a test" in page.text  # ten, and the collage shows them all
    assert page.values["coverage"]  # measured now, though not yet in the log


def test_a_few_colour_images_without_held_out_ones_get_a_page(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 70), ("val", 0), ("test", 0)):
        arrays[f"{split}_images"] = random.integers(0, 256, (n, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = random.integers(0, 8, (n, 1), dtype=np.uint8)
    Path("data").mkdir()
    np.savez("data/bloodmnist.npz", **arrays)
    run("train_model.py", "--DATASET=bloodmnist", "--EPOCHS=1", "--METRIC_IMAGES=0")
    result = run("generate_report.py", "--N_SYNTHETIC=200")
    assert result.status == 0, result.text
    page = Page("images/bloodmnist/report.html")
    assert "neither a test nor a validation split" in page.text
    assert "ratio" not in page.values and page.values["coverage"]
    assert "10.1038/s41597-022-01721-8" in page.html and "CC BY 4.0" in page.text
    assert "this is another file than MedMNIST's" in page.text
    assert len(page.html) < 8e6


def test_words_from_a_checkpoint_are_shown_and_not_obeyed(run, train):
    train("--EPOCHS=1")
    saved = torch.load("models/phantom/checkpoint.pt", weights_only=True)
    assert saved["machine"].keys() == {"Hardware", "Versions", "Last trained"}
    saved["machine"]["Hardware"] = "<script>alert(1)</script>"
    rewrite("models/phantom/checkpoint.pt", saved)
    run("generate_report.py", *only())
    page = Page("images/phantom/report.html")
    assert not page.all("script") and "alert(1)" in page.text
