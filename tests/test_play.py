"""play.html: its arithmetic is PyTorch's, and one can play with it in a browser.

Node computes the networks for the numbers; Chromium opens the page as a user does. Where one of
them is missing, its tests are skipped.
"""

import base64
import contextlib
import io
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPO, run_script
from PIL import Image
from test_page import only
from torch import nn

import dcgan
from common import checkpoint
from common.data import dataset
from report import export_js, play

ONLY_PLAY = only("play")
NODE = """
const { Network } = require(process.argv[1]);
const { network, inputs } = JSON.parse(require("fs").readFileSync(0));
const computed = new Network(network);
const results = inputs.map((input, i) => {
  const output = Array.from(computed.forward(...input));
  return [output, i < 16 ? Array.from(computed.gradient()) : []];
});
process.stdout.write(JSON.stringify(results));
"""


def in_node(network, *inputs):
    """What play.js makes of a network: outputs and, of the first 16, gradients; a row for each."""
    if not shutil.which("node"):
        pytest.skip("Node is not here: install nodejs to test the arithmetic of play.js")
    description = export_js.describe(network, *(tensor[:1] for tensor in inputs))
    rows = [
        [export_js.to_rows(row[None]).tolist() for row in example]
        for example in zip(*inputs, strict=True)
    ]
    found = subprocess.run(
        ["node", "-e", NODE, str(REPO / "report" / "play.js")],
        input=json.dumps({"network": description, "inputs": rows}),
        capture_output=True,
        text=True,
        check=True,
    )
    outputs, gradients = zip(*json.loads(found.stdout), strict=True)
    return torch.tensor(outputs), torch.tensor(gradients[:16])


def in_torch(network, *inputs):
    """The same of PyTorch. The gradient is that of the sum of the outputs of each example."""
    images = inputs[0].clone().requires_grad_()
    output = network(images, *inputs[1:])
    (gradient,) = torch.autograd.grad(output.sum(), images)
    rows = [torch.stack([export_js.to_rows(row[None]) for row in x]) for x in (output, gradient)]
    return rows[0].detach(), rows[1]


def trained_a_little(network, *inputs):
    """Give a network weights and statistics of BatchNorm that differ from layer to layer."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1).add_(torch.randn_like(parameter) / 50)
        for _ in range(3):
            network.train()(*inputs)
    return network.eval()


KINDS = {  # channels, labels, size, bilinear
    "plain": (1, 0, 28, True),
    "conditional": (1, 2, 28, True),
    "colour": (3, 8, 28, True),
    "transposed": (1, 0, 28, False),
    "64": (1, 0, 64, True),
    "64 conditional transposed": (1, 2, 64, False),
}


@pytest.mark.parametrize("channels, labels, size, bilinear", KINDS.values(), ids=KINDS)
def test_play_js_computes_the_networks_as_pytorch_does(channels, labels, size, bilinear):
    torch.manual_seed(0)
    n = 64 if size == 28 else 4  # images
    vectors = [torch.randint(0, 2, (n, labels)).float()] if labels else []
    latents = torch.randn(n, 100)
    arguments = {"channels": channels, "labels": labels, "size": size}
    generator = dcgan.Generator(**arguments, bilinear=bilinear)
    generator = trained_a_little(generator, latents, *vectors)
    expected, _ = in_torch(generator, latents, *vectors)
    images, _ = in_node(generator, latents, *vectors)
    difference = (images - expected).abs().max() * 127.5
    assert expected.std() > 0.1 and difference < 0.5, "half a grey level: at most 1 once rounded"

    shown = dataset.to_network(torch.randint(0, 256, (n, channels, size, size)))
    discriminator = trained_a_little(dcgan.Discriminator(**arguments), shown, *vectors)
    expected, gradient = in_torch(discriminator, shown, *vectors)
    logits, found = in_node(discriminator, shown, *vectors)
    assert expected.std() > 0.1
    assert torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * expected.std().item())
    # A LeakyReLU at its bend may fall to the other side, which changes a few pixels' gradients.
    near = (found - gradient[:16]).abs() < 0.02 * gradient.abs().max()
    assert near.float().mean() > 0.99


def test_a_layer_that_play_js_lacks_is_named():
    image = torch.zeros(1, 1, 8, 8)
    noisy = type("Noisy", (nn.Module,), {"forward": lambda _, x: x + torch.randn(1, 1, 8, 8)})
    for network, name in (
        (nn.SiLU(), "silu"),
        (nn.MaxPool2d(2), "max_pool2d"),
        (noisy(), "randn, which draws random numbers"),
        (nn.BatchNorm2d(1), "batch_norm with the statistics of the batch"),
    ):
        with pytest.raises(export_js.UnknownLayer, match=name):
            export_js.describe(network, image)


def test_the_knobs_follow_the_directions_that_change_most():
    torch.manual_seed(0)
    planted, _ = torch.linalg.qr(torch.randn(20, 20))
    strength = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.5, 2.0] + [0.1] * 14)
    generator = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Unflatten(1, (1, 8, 8)))
    generator.latent_dim = 20
    mixed, _ = torch.linalg.qr(torch.randn(64, 20))
    with torch.no_grad():
        generator[0].weight.copy_((mixed * strength) @ planted.T)
        generator[0].bias.fill_(20)  # ReLU is never at its bend, so all is linear
    directions, share, effects = play.find_directions(generator, [])
    directions = torch.tensor(directions)
    assert torch.allclose(directions @ directions.T, torch.eye(6), atol=1e-5)
    assert ((directions @ planted[:, :6]).abs().diagonal() > 0.95).all()
    assert share > 0.99 and len(effects) == 6


@pytest.mark.parametrize(
    "real, fake, coverage, words",
    [
        (0.99, 0.02, 0.5, "too strong"),
        (0.55, 0.47, 0.5, "in balance"),
        (0.68, 0.33, 0.5, "often in doubt"),
        (0.80, 0.20, 0.5, "clearly ahead"),
        (0.60, 0.40, 0.05, "Collapse"),
    ],
)
def test_what_is_said_of_an_epoch_follows_from_its_numbers(real, fake, coverage, words):
    row = {"epoch": 7, "step": 900, "d_real": real, "d_fake": fake, "coverage": coverage}
    assert words in play.tell(row)
    before = {"epoch": 6, "d_real": 0.6, "d_fake": 0.3}
    text = play.tell(row, before)
    assert ("has grown since epoch 6" in text) == (real - fake > 0.32 and coverage > 0.1)


# --- The page ---


@pytest.fixture(scope="module")
def played(tmp_path_factory, shelf):
    """The folder of a small conditional run of two epochs, and its play.html."""
    folder = tmp_path_factory.mktemp("played")
    fast = "--LEARNING_RATE=0.001"  # else six steps hardly change a verdict
    shutil.copytree(shelf("--CONDITIONAL=True", "--EPOCHS=2", fast), folder / "models")
    with contextlib.chdir(folder):
        assert run_script("generate_report.py", *ONLY_PLAY)[0] == 0
    return folder


def embedded(folder):
    """The data in a play.html."""
    html = (folder / "images/phantom/play.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', html)[1])


def test_the_page_is_self_contained_small_and_linked(played):
    html = (played / "images/phantom/play.html").read_text(encoding="utf-8")
    assert len(html) < 6e6
    assert "default-src 'none'" in html and "unsafe" not in html.split("</head>")[0]
    assert "Not for clinical use" in html and "show no patient" in html
    assert not re.search(r'\son\w+="|style="|(src|href)="http|\beval\(|new Function', html)
    report = (played / "images/phantom/report.html").read_text(encoding="utf-8")
    assert 'href="play.html"' in report and "<script" not in report


def test_names_cannot_break_out_of_the_data():
    name = "</script><script>alert(1)</script>\u2028&"
    text = play.script_json({"name": name})
    assert "<" not in text and text.isascii() and json.loads(text)["name"] == name


def test_larger_images_get_no_page_and_a_line_says_why(capsys):
    context = SimpleNamespace(saved={"settings": {"DATASET": "phantom"}}, size=128)
    assert play.play(context) is None
    assert "no play.html: above 64 pixels" in capsys.readouterr().out


def test_the_report_goes_on_without_the_page_of_an_unknown_layer(run, played, monkeypatch):
    monkeypatch.chdir(played)
    features = dcgan.Discriminator.features
    monkeypatch.setattr(
        dcgan.Discriminator, "features", lambda self, images: features(self, images).sin()
    )
    result = run("generate_report.py", *ONLY_PLAY, "--IMAGES_DIR=without")
    assert result.status == 0 and "play.js cannot compute sin" in result.text
    report = (played / "without/phantom/report.html").read_text(encoding="utf-8")
    assert "play.html" not in report and not (played / "without/phantom/play.html").exists()


# --- The browser ---


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if not path:
        pytest.skip("Chromium is not here: install chromium to test play.html in a browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, path, width=1280):
    """A play.html, opened from its file; fails if it complained or asked for anything."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(300_000)  # ms; a busy machine is no fault of the page
    troubles = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: troubles.append(request.url))
    address = path.as_uri()
    page.goto(address)
    page.wait_for_selector("body[data-ready=yes]")
    yield page
    page.close()
    assert [text for text in troubles if not text.startswith("data:")] == [address]


@pytest.fixture
def page(browser, played):
    with opened(browser, played / "images/phantom/play.html") as page:
        yield page


# --- The page in the repository ---

IN_DOCS = REPO / "docs" / "play.html"


def test_the_page_in_the_repository_is_of_this_version_small_and_shows_no_patient():
    html = IN_DOCS.read_text(encoding="utf-8")
    assert play.version() in html, "docs/FILES.md has the commands that make it anew"
    assert len(html) < 6e6 and "No image on this page shows a patient" in html
    assert "epoch 20 of 20" in html and not re.search(r'(src|href)="http', html)
    assert 'href="report.html"' not in html, "which is not in docs/"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_the_repository_opens_and_can_be_played(browser, width):
    with opened(browser, IN_DOCS, width) as page:
        assert page.locator("#disagrees").is_hidden()
        before = pixels(page, "#image")
        page.click("#new")
        settled(page)
        assert not np.array_equal(before, pixels(page, "#image"))
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, "nothing has to be scrolled sideways"


def pixels(page, selector):
    """The greys in a canvas."""
    address = page.locator(selector).evaluate("canvas => canvas.toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    return np.asarray(picture.convert("RGB"))[:, :, 0].flatten().astype(int)


def settled(page):
    """Wait until what was asked for is on the screen."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")


def test_knobs_labels_and_walks_change_the_image(page):
    assert page.locator("#disagrees").is_hidden(), "the page computes what PyTorch does"
    before = pixels(page, "#image")
    page.click("#new")
    settled(page)
    home = pixels(page, "#image")
    assert not np.array_equal(before, home)
    page.focus("#knob-1")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    settled(page)
    assert not np.array_equal(home, pixels(page, "#image"))
    assert " SD" in page.inner_text("#knobs .knob:first-child output")
    page.click("#reset")
    settled(page)
    assert np.array_equal(home, pixels(page, "#image"))
    page.get_by_label("effusion").click()
    settled(page)
    assert not np.array_equal(home, pixels(page, "#image"))
    page.get_by_label("effusion").click()
    settled(page)
    assert np.array_equal(home, pixels(page, "#image"))
    page.click("#walk")
    page.wait_for_timeout(200)
    page.click("#walk")
    assert page.get_attribute("#walk", "aria-pressed") == "false"
    assert not np.array_equal(home, pixels(page, "#image"))


def needle(page):
    """The place of the needle in percent, with all digits: its style keeps six."""
    place = 100 * page.evaluate("judge(studio.shown, studio.labels)")
    style = page.evaluate("document.getElementById('needle').style.left")
    assert float(style.rstrip("%")) == pytest.approx(place, abs=1e-3)
    return place


def test_drawing_and_following_the_map_change_the_verdict(page):
    before, image = needle(page), pixels(page, "#image")
    assert 0 <= before <= 100 and page.inner_text("#verdict").endswith("% phantom")
    page.get_by_label("brighter", exact=True).check()
    box = page.locator("#image").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.6, steps=8)
    page.mouse.up()
    settled(page)
    assert (pixels(page, "#image") > image).any() and (pixels(page, "#image") >= image).all()
    assert needle(page) != before
    page.click("#clean")
    settled(page)
    assert np.array_equal(pixels(page, "#image"), image) and needle(page) == before

    page.get_by_label("darker").check()
    page.focus("#image")
    for key in ("ArrowLeft", "ArrowUp", " "):
        page.keyboard.press(key)
    settled(page)
    assert (pixels(page, "#image") < image).any()
    page.get_by_label("erase").check()
    page.focus("#image")
    page.keyboard.press(" ")
    settled(page)
    assert np.array_equal(pixels(page, "#image"), image)

    page.click("#follow")
    settled(page)
    assert needle(page) > before
    assert 0 < np.abs(pixels(page, "#image") - image).max() <= 2


def test_the_epoch_slider_moves_curves_and_tiles(page):
    tiles, place = pixels(page, "#epochs"), page.get_attribute("#curves .cursor", "x1")
    assert page.inner_text("#epoch-number") == "2 of 2"
    page.focus("#epoch")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#epoch-number") == "1 of 2"
    assert page.get_attribute("#epochs", "data-epoch") == "1"
    assert not np.array_equal(tiles, pixels(page, "#epochs"))
    assert page.get_attribute("#curves .cursor", "x1") != place
    assert page.inner_text("#epoch-text")


def test_the_game_counts_right_and_its_answers_agree_with_the_data(page, played, phantom_dir):
    training = dataset.load("phantom", folder=phantom_dir, fraction=0.02)[0]
    originals = {image.numpy().tobytes() for image in training}
    path = played / "models/phantom/checkpoint.pt"
    saved = checkpoint.load(path, checkpoint.CHECKPOINT)
    discriminator = checkpoint.rebuild_discriminator(saved, path)

    def play_game(key_of):
        for _ in range(20):
            page.keyboard.press(key_of(pixels(page, "#tile").astype(np.uint8).tobytes()))
        names = page.locator("#revealed figcaption b").all_inner_texts()
        tiles = page.evaluate("game.tiles.map(t => [[...t.pixels], t.labels, t.probability])")
        images = [np.array(tile[0], dtype=np.uint8) for tile in tiles]
        assert [name == "phantom" for name in names] == [x.tobytes() in originals for x in images]
        shown = dataset.to_network(torch.from_numpy(np.stack(images)).view(20, 1, 28, 28))
        with torch.no_grad():
            labels = torch.tensor([tile[1] for tile in tiles]).float()
            expected = discriminator(shown, labels).sigmoid().mean(1)
        assert torch.allclose(torch.tensor([tile[2] for tile in tiles]), expected, atol=1e-3)
        its = sum((p > 0.5) == (name == "phantom") for p, name in zip(expected, names, strict=True))
        return re.findall(r"\d+", page.inner_text("#score")), int(its), set(images[0].tobytes())

    page.click("#begin")
    score, its, _ = play_game(lambda tile: "ArrowRight")
    assert score == ["10", "20", str(its)], "half of them are originals"
    page.get_by_role("button", name="Again").click()
    score, its, _ = play_game(lambda t: "ArrowRight" if t in originals else "ArrowLeft")
    assert score == ["20", "20", str(its)]
    assert page.locator("#confusion tbody td").all_inner_texts()[:2] == ["10", "0"]
    assert len(embedded(played)["game"]["labels"]) == 40


def test_the_report_is_not_scrolled_sideways(browser, played):
    page = browser.new_page()
    page.goto((played / "images/phantom/report.html").as_uri())
    for width in (320, 360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_nothing_overflows_on_a_phone_or_a_desk(page):
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 740})
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate("scrollTo(0, 1500)")
        settled(page)
        banner = page.locator(".banner").bounding_box()
        assert banner["y"] == 0 and banner["height"] > 20, "always in view"
