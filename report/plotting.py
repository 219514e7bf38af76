"""Draw images and curves in one style: as files for paper and slides, and for the page.

Images are uint8; 0 is always black and 255 always white, so contrast is never stretched. A picture
of tiles is written with its heading at SCALE screen pixels per image pixel; the page gets the bare
pixels, which the browser enlarges, so that they stay crisp. Curves are written as PNG and as PDF;
the page gets them as SVG, in colours for a light and for a dark screen. Paths are printed with
tqdm.write, which does not break the progress bar.
"""

import base64
import contextlib
import functools
import io
import math
import textwrap
import unicodedata

import imageio.v3 as imageio
import matplotlib
import matplotlib.style
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image, ImageDraw
from torchvision.utils import make_grid
from tqdm import tqdm

from common import files

GAP = 1  # image pixels between tiles
DPI = 300  # of curves in PNG files, and as stated in pictures of tiles
PAGE_WIDTH, PHONE_WIDTH, PAPER_WIDTH = 950, 350, 640  # CSS pixels for pictures
CURVE_WIDTH = 5.6  # inches; letters stay legible in a column of a paper
TITLE_LETTERS = 60  # in a line of that width
DISTANCE = "the root mean square of the pixels, in grey levels"  # of two images, in words

INK, BLUE, VERMILION, GREEN = "#1d2127", "#0072b2", "#d55e00", "#009e73"
# The same on a dark screen. Colour-blind readers can tell them apart too (Okabe and Ito).
DARK = {INK: "#d7dade", BLUE: "#56b4e9", VERMILION: "#f0864a", GREEN: "#2fc79b"}
DARK |= {"#440154": "#c58bd6", "#414487": "#8f93e0"}  # the dark end of viridis
STYLE = {f"{part}.color": INK for part in ("text", "xtick", "ytick")} | {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, VERMILION, GREEN]),  # C0, C1, C2 below
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType, which journals require
    "svg.hashsalt": "",  # the same ids each time: equal reports are equal files
}


# Draws in matplotlib's own style with some changes, whatever the user's matplotlibrc sets.
style = functools.partial(matplotlib.style.context, after_reset=True)


@functools.lru_cache
def fonts_for(text):
    """Return the names of the installed fonts by which a text can be drawn, None if it cannot be.

    The first is matplotlib's own; others follow only for letters that it lacks. Letters that are
    written from right to left, or join, need matplotlib 3.11, which lays them out.
    """
    names, missing = ["DejaVu Sans"], {letter for letter in text if letter.isprintable()}
    right_to_left = {"R", "AL"} & {unicodedata.bidirectional(letter) for letter in missing}
    if right_to_left and matplotlib.__version_info__ < (3, 11):
        return None
    missing -= letters_of(findfont(names[0]))
    for font in sorted(fontManager.ttflist, key=lambda font: ("Sans" not in font.name, font.name)):
        usual = font.weight == 400 and font.style == "normal" and not font.name.startswith("Last")
        if missing and usual and font.name not in names and missing & letters_of(font.fname):
            names.append(font.name)
            missing -= letters_of(font.fname)
    return None if missing else tuple(names)


@functools.lru_cache
def letters_of(path):
    """Return the letters that a font has, none if its file is damaged or gone."""
    with contextlib.suppress(RuntimeError, OSError):
        return {chr(code) for code in get_font(path).get_charmap()}
    return set()


def tile(images, columns):
    """Lay images (N, C, S, S) out in rows. Returns uint8 RGBA (H, W, 4), gaps transparent."""
    colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    seen = torch.full_like(colour[:, :1], 255)
    grid = make_grid(torch.cat([colour, seen], 1), nrow=columns, padding=GAP, pad_value=0)
    grid = grid.permute(1, 2, 0).numpy()
    return grid[GAP:-GAP, GAP:-GAP] if len(images) > 1 else grid  # a single one has no border


@style({})
def compose(heading, cells, columns, scale, below=False):
    """Draw captioned pictures in rows under a heading. Returns uint8 (height, width, 3).

    cells: list of (caption, what `tile` returned), all pictures of one size. The captions stand
    above the pictures, or below.
    """
    unit = max(1.0, scale / 3)  # letters grow with the pictures
    line, margin = round(26 * unit), round(16 * unit)  # pixels
    letters = "".join(sorted({*heading, *(letter for text, _ in cells for letter in text)}))
    matplotlib.rcParams["font.family"] = list(fonts_for(letters) or ["DejaVu Sans"])
    height, width = (scale * side for side in cells[0][1].shape[:2])
    lines = max(text.count("\n") + 1 if text else 0 for text, _ in cells)
    caption = line * lines
    top = margin + line * (heading.count("\n") + 1)
    rows = -(-len(cells) // columns)
    columns = min(columns, len(cells))
    total_height = top + rows * (height + caption + margin // 2) + margin // 2
    dpi = 100 * unit
    figure = Figure(dpi=dpi, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    style = {"va": "top", "linespacing": 1.5, "parse_math": False}  # a name may have a $
    title = figure.text(0, 0, heading, fontsize=12, **style)
    letters = title.get_window_extent(canvas.get_renderer()).width
    heading_width = max(round(480 * unit), 2 * margin + math.ceil(letters))
    total_width = max(columns * (width + margin) + margin, heading_width)
    figure.set_size_inches(total_width / dpi, total_height / dpi)
    title.set_position((margin / total_width, 1 - margin / total_height))
    for number, (text, picture) in enumerate(cells):
        x = margin + number % columns * (width + margin)
        y = top + number // columns * (height + caption + margin // 2)  # from above
        text_y = y + (height + 2 * unit if below else caption - 4 * unit)
        place = (x / total_width, 1 - text_y / total_height)
        va = "top" if below else "bottom"
        figure.text(*place, text, fontsize=11, va=va, parse_math=False)
        enlarged = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        from_below = total_height - (y if below else y + caption) - height
        figure.figimage(enlarged, x, from_below)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def save_tiles(path, heading, cells, columns, scale, alt, below=False):
    """Write a picture of tiles, print it and return what the page needs to show it.

    heading, cells, columns, scale, below: as for `compose`; alt: the picture in words.
    """
    write_png(path, compose(heading, cells, columns, scale, below))
    height, width = cells[0][1].shape[:2]
    pixels = [(caption, embed(png(picture, optimize=True), "png")) for caption, picture in cells]
    wide = min(5, fit(columns * (width + 3), PAGE_WIDTH))
    if wide < 2:  # too small side by side: put one below the other
        wide = min(2, fit(width, PAGE_WIDTH))
    zooms = {
        "wide": wide,
        "phone": min(3.0, fit(width, PHONE_WIDTH, 0.5)),  # phone screens resolve half a pixel
        "paper": min(3.0, PAPER_WIDTH / (columns * (width + 8))),
    }
    return {
        "file": path.name,
        "cells": pixels,
        "width": width,
        "height": height,
        "columns": columns,
        "zooms": zooms,
        "below": below,
        "alt": alt,
    }


def fit(width, available, step=1):
    """Return the largest zoom at which a picture fits, a multiple of step unless it is below 1."""
    zoom = available / width
    return zoom // step * step if zoom >= 1 else zoom


def save_curves(path, draw, alt):
    """Write a figure as PNG and PDF, and return what the page needs to show it.

    path: without a suffix; draw: a function without arguments that returns a Figure; alt: the
    figure in words.
    """
    with style(STYLE):
        figure = draw()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # keep this layout for all formats
        for suffix, date in ((".png", {}), (".pdf", {"CreationDate": None})):
            memory = io.BytesIO()  # matplotlib would hide why a file cannot be written
            figure.savefig(memory, format=suffix[1:], dpi=DPI, facecolor="white", metadata=date)
            files.write(path.with_suffix(suffix), memory.getbuffer())
        memory = io.BytesIO()
        figure.savefig(memory, format="svg", transparent=True, metadata={"Date": None})
    light = dark = memory.getvalue()
    for colour, on_dark in DARK.items():
        dark = dark.replace(colour.encode(), on_dark.encode())
    tqdm.write(str(path.with_suffix(".png")))
    images = {"light": embed(light, "svg+xml"), "dark": embed(dark, "svg+xml")}
    return {"file": f"{path.name}.png", "alt": alt} | images


def plot(axes, history, key, label, colour):
    """Plot one column of the history over the epochs."""
    rows = [row for row in history if key in row]
    marker = "o" if len(rows) < 15 else None
    epochs = [row["epoch"] for row in rows]
    whole = {"clip_on": False, "zorder": 3} if marker else {}  # points at the edge are not cut
    values = [row[key] for row in rows]
    axes.plot(epochs, values, label=label, color=colour, marker=marker, **whole)


def over_epochs(title, rows=2):
    """Return a figure and its axes, one above the other, that share the epochs."""
    figure = Figure((CURVE_WIDTH, 2.6 * rows))
    axes = figure.subplots(rows, 1, sharex=True)
    set_title(axes[0], title)
    axes[-1].set_xlabel("epoch")
    whole = MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)  # 1: of a single epoch
    axes[-1].xaxis.set_major_locator(whole)
    return figure, axes


def set_title(axes, title):
    """Write a title in lines that fit, none much shorter, with room for the legend below it."""
    lines = []
    for line in title.split("\n"):
        wrapped = [textwrap.wrap(line, width) for width in range(20, TITLE_LETTERS + 1)]
        lines += next(found for found in wrapped if len(found) == len(wrapped[-1]))
    axes.set_title("\n".join(lines), pad=24)


def one_plot(title):
    """Return a figure and its only axes."""
    figure = Figure((CURVE_WIDTH, 3))
    axes = figure.subplots()
    set_title(axes, title)
    return figure, axes


def histogram(title, sets, bins, xlabel, ylabel):
    """Return a figure that compares how numbers are distributed.

    sets: {label: numbers (N,)}; bins: their edges. Heights are percentages of a set.
    """
    figure, axes = one_plot(title)
    for number, (label, values) in enumerate(sets.items()):
        counts, _ = np.histogram(values, bins)
        percent = 100 * counts / len(values)
        axes.stairs(percent, bins, label=label, color=f"C{number}", linewidth=1.5)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(bins[0], bins[-1]))
    axes.set_ylim(bottom=0)
    legend(axes)
    return figure


def logarithmic(axes):
    """Make the y axis logarithmic, with plain numbers, once all curves are drawn.

    They stand at 1, 2 and 5 of each power of ten, or at 1 alone if the axis is too long for that.
    """
    axes.set_yscale("log")
    lowest, highest = axes.get_ylim()
    subs = (1, 2, 5) if highest < 2000 * lowest else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def legend(axes):
    """Put the legend above the axes, where it covers no curve, three to a row so that it fits."""
    n = len(axes.get_legend_handles_labels()[0])
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.98),
        ncols=min(3, n),
        handlelength=1.5,
        columnspacing=1.2,
    )
    rows = -(-n // 3)
    axes.set_title(axes.get_title("left"), loc="left", pad=4 + 20 * rows)  # points


def write_png(path, picture, quiet=False):
    """Write a picture, uint8 (H, W, 3), and print its path."""
    files.write(path, png(picture, dpi=(DPI, DPI)))
    if not quiet:
        tqdm.write(str(path))


def write_gif(path, frames, greys, durations):
    """Write an endless animation. frames: uint8 (H, W, 3); durations: ms, for each frame."""
    files.write(path, gif(frames, greys, durations))
    tqdm.write(f"{path}: {len(frames)} frames")


def gif(frames, greys, durations):
    """Return the bytes of an endless animation, grey frames in as many levels as `greys`."""
    if all((frame == frame[:, :, :1]).all() for frame in frames):
        step = 255 / (greys - 1)
        levels = [(frame[:, :, 0] / step).round() * step for frame in frames]
        frames = [level.round().astype(np.uint8) for level in levels]
    if len(frames) == 1:  # imageio then passes the durations on as those of one picture
        durations = durations[0]
    return imageio.imwrite("<bytes>", frames, extension=".gif", duration=durations, loop=0)


def caption_frames(pictures, captions):
    """Return frames for the page: pictures on black, each with a line of text below it.

    pictures: what `tile` returned, of one size. They are not enlarged: the browser does that.
    """
    frames = []
    for picture, caption in zip(pictures, captions, strict=True):
        height, width = picture.shape[:2]
        frame = Image.new("RGB", (width, height + (12 if caption else 0)))
        frame.paste(Image.fromarray(picture[:, :, :3]))  # the gaps become black
        if caption:
            draw = ImageDraw.Draw(frame)
            draw.fontmode = "1"  # no antialiasing, which enlarged would look blurred
            draw.text((1, height), caption, fill="white")
        frames.append(np.asarray(frame))
    return frames


def animation(path, frames, greys, durations, alt):
    """Return what the page needs to show an animation.

    Its last frame comes with it, for readers whose system asks for reduced motion.
    """
    height, width = frames[0].shape[:2]
    return {
        "file": path.name,
        "uri": embed(gif(frames, greys, durations), "gif"),
        "still": embed(png(frames[-1], optimize=True), "png"),
        "columns": 1,
        "width": width,
        "height": height,
        "zooms": {
            "wide": min(4, fit(width, 700)),
            "phone": fit(width, PHONE_WIDTH, 0.5),
            "paper": 2,
        },
        "alt": alt,
    }


def png(picture, **options):
    """Return the bytes of a picture, uint8 (H, W, 3) or (H, W, 4), in grey if it has no colours."""
    image = Image.fromarray(picture)
    if (picture[:, :, :3] == picture[:, :, :1]).all():
        image = image.convert(image.mode.replace("RGB", "L"))
    memory = io.BytesIO()
    image.save(memory, "png", **options)
    return memory.getvalue()


def embed(content, kind):
    """Return the bytes of an image as a URI for the page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
