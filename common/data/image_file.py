"""Reads one image file, PNG, JPEG, TIFF or DICOM, into the square of pixels that is learned.

A file is what its first bytes say, whatever its suffix.
"""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps

from common.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom")
STARTS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # not DICOM's
COLOURLESS = 4  # grey levels by which R, G and B of a grey image differ at most, after a JPEG
PHOTOMETRIC = 262  # a tag of TIFF; if it is 0, white is 0, which Pillow minds at 8 bits only
BITS, SAMPLE_FORMAT, SIGNED = 258, 339, (2,)  # tags of TIFF, and a value of the second


class Unusable(Exception):
    """An image cannot be used; the message says why."""


def read_image(path, size):
    """Return (pixels, own_range) of an image file, cropped to its central square and resized.

    pixels: uint8 (size, size), or (size, size, 3) if it has colour; own_range: whether its values
    are of another range than 0 to 255 and were scaled by that of the file. Raises Unusable if it is
    too small or cannot be decoded here, and many kinds of exceptions if it is damaged.
    """
    image, own_range = (reader(path) or open_image)(path)
    pixels = square(image, size)
    if pixels.ndim == 3 and np.ptp(pixels, axis=-1).max() <= COLOURLESS:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    return pixels, own_range


def square(image, size):
    """Return the central square of a picture as uint8 (size, size), or (size, size, 3) in colour.

    image: of Pillow, its mode is L, RGB, or F with values from 0 to 255. Pixels are averaged over
    areas (Pillow's box filter). Raises Unusable if it is smaller.
    """
    width, height = image.size
    side = min(width, height)
    if side < size:
        raise Unusable(f"{width}x{height} pixels, fewer than {size}")
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    small = image.resize((size, size), Image.Resampling.BOX, box, reducing_gap=None)
    pixels = np.asarray(small)
    return pixels.round().astype(np.uint8) if small.mode == "F" else pixels


def open_image(path):
    """Return (picture, own_range) of a PNG, JPEG or TIFF file, upright, for square."""
    quiet = warnings.catch_warnings(action="ignore")  # of odd metadata
    with quiet, Image.open(path, formats=("PNG", "JPEG", "TIFF")) as opened:
        if ";16" in str(opened.tile) and not opened.mode.startswith(("I", "F")):
            raise Unusable("16 bits in several channels, of which Pillow reads 8")
        opened.load()  # a second time Pillow would give black for what it cannot decode
        try:
            image = ImageOps.exif_transpose(opened)
        except Exception:  # damaged EXIF; the picture may be whole
            image = opened.copy()
        tags = getattr(opened, "tag_v2", {})
    white_is_zero = tags.get(PHOTOMETRIC) == 0
    if tags.get(SAMPLE_FORMAT) == SIGNED and tags.get(BITS) == (8,):  # -128 is black
        return Image.fromarray(np.asarray(image) ^ np.uint8(128)), False
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        ends = sorted([values.min(), values.max()], reverse=white_is_zero)
        return to_greys(values, *ends), True
    if image.has_transparency_data:  # what is transparent is to be black
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L" if image.mode in ("1", "L") else "RGB"), False


def to_greys(values, black, white):
    """Map values (H, W) to a picture of mode F: black to 0, white to 255, what is outside clipped.

    All is 0 if black is white. Raises Unusable for values that are not finite.
    """
    if not np.isfinite([black, white]).all():
        raise Unusable("its pixels are not all finite")
    span = (float(white) - float(black)) or 1.0
    greys = ((values.astype(np.float64) - black) * (255 / span)).clip(0, 255)
    return Image.fromarray(greys.astype(np.float32))


def is_image(path):
    """Whether a file is of a kind that read_image reads, by its suffix or its first bytes.

    A DICOMDIR is a list of other files.
    """
    listed = str(path).lower().endswith(SUFFIXES) or reader(path) is not None
    return listed and os.path.basename(path) != "DICOMDIR"


def reader(path):
    """Return open_dicom or open_image, by the first bytes of a file or its suffix, or None."""
    with open(path, "rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return open_dicom
    if start.startswith(STARTS):
        return open_image
    return open_dicom if str(path).lower().endswith((".dcm", ".dicom")) else None


# --- DICOM ---


def open_dicom(path):
    """Return (picture, own_range) of the first frame of a DICOM file as a viewer shows it.

    Stored values are rescaled (slope and intercept, or the modality LUT), then shown through the
    first VOI LUT or window of the file, or else, unless they are plain bytes, by their own range,
    from the darkest to the brightest; MONOCHROME1, where low is bright, is inverted. Padding is
    black. Raises as read_image does, and UserError if pydicom is missing or too old.
    Source: DICOM PS3.3, C.7.6.3.1.2, C.11.1 and C.11.2.
    """
    try:
        import pydicom
        from pydicom import pixels as dicom
    except ImportError:
        raise UserError(
            f"{path} is a DICOM file, and pydicom, which reads them, is not installed. To "
            'install it: pip install "pydicom>=3"'
        ) from None
    with warnings.catch_warnings(action="ignore"), np.errstate(over="ignore"):
        header = pydicom.dcmread(path)
        try:
            stored = dicom.pixel_array(header, index=0)
        except RuntimeError:  # no plug-in for this compression
            kind = header.file_meta.TransferSyntaxUID.name
            raise Unusable(f"{kind}; pip install pylibjpeg[all] may help") from None
        for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            for kind in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for group in header.get(groups, [])[:1]:  # the first frame of an enhanced file
                    header.update((group.get(kind) or [{}])[0])
        highest = 2**header.BitsStored - 1
        if header.PhotometricInterpretation == "PALETTE COLOR":
            stored = dicom.apply_color_lut(stored, header)
            highest = np.iinfo(stored.dtype).max
        if stored.ndim == 3:
            return Image.fromarray((stored * (255 / highest)).round().astype(np.uint8)), False
        padding = find_padding(header, stored)
        values = dicom.apply_modality_lut(stored, header)
        plain = header.BitsStored == 8 and header.PixelRepresentation == 0
        own_range = False
        if header.get("VOILUTSequence"):
            descriptor = header.VOILUTSequence[0].LUTDescriptor
            black, white = 0, 2 ** descriptor[2] - 1
            descriptor[2] = 16  # with 8, pydicom counts the values modulo 256
            values = dicom.apply_voi(values, header)
        elif header.get("WindowCenter") is not None and np.ravel(header.get("WindowWidth") or 0)[0]:
            values = dicom.apply_windowing(values, header)
            black, white = dicom.apply_windowing(np.array([-1e15, 1e15]), header)  # its ends
        elif plain and np.array_equal(values, stored):
            black, white = 0, 255
        else:
            own_range = True
            shown = values[~padding] if not padding.all() else values
            black, white = shown.min(), shown.max()
    if header.PhotometricInterpretation == "MONOCHROME1":
        black, white = white, black
    return to_greys(np.where(padding, black, values), black, white), own_range


def find_padding(header, stored):
    """Return which stored values (H, W) are padding around the image, bool (H, W).

    Source: DICOM PS3.3, C.7.5.1.1.2; the values may be written as unsigned where pixels are signed.
    """
    first = header.get("PixelPaddingValue")
    last = header.get("PixelPaddingRangeLimit", first)
    if not isinstance(first, int) or not isinstance(last, int):
        return np.zeros(stored.shape, bool)
    ends = np.array([first, last]).astype(stored.dtype)
    return (stored >= ends.min()) & (stored <= ends.max())
