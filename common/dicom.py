"""Reads the pixels of a DICOM file as a viewer shows them. Needs pydicom, an optional extra."""

import importlib.util
import warnings

import numpy as np

from common.settings import UserError


def demand_pydicom(path):
    """Raise UserError, with the command that installs it, unless pydicom can be imported.

    path: a file that cannot be read without it.
    """
    if not importlib.util.find_spec("pydicom"):
        raise UserError(
            f"{path} is a DICOM file, and pydicom, which reads them, is not installed. To "
            'install it: pip install "pydicom>=3"'
        )


def read(path):
    """Return (pixels, own_range) of the first frame of a DICOM file.

    pixels: float32 (H, W), 0 is black and 255 white, or uint8 (H, W, 3). Stored values are rescaled
    (slope and intercept, or the modality LUT), then shown through the first VOI LUT or window of
    the file, or else by their own range, from the darkest to the brightest; MONOCHROME1, where low
    is bright, is inverted. own_range: whether they were shown by their own range. Raises many kinds
    of exceptions for a file that has no image or cannot be decoded.
    Source: DICOM PS3.3, C.7.6.3.1.2, C.11.1 and C.11.2.
    """
    import pydicom
    from pydicom import pixels as dicom

    with warnings.catch_warnings(action="ignore"), np.errstate(over="ignore"):
        header = pydicom.dcmread(path)
        pixels = dicom.pixel_array(header, index=0)
        if header.PhotometricInterpretation == "PALETTE COLOR":
            pixels = dicom.apply_color_lut(pixels, header)
        if pixels.ndim == 3:
            return (pixels * (255 / np.iinfo(pixels.dtype).max)).round().astype(np.uint8), False
        pixels = dicom.apply_modality_lut(pixels, header)
        own_range = False
        if header.get("VOILUTSequence"):
            pixels = dicom.apply_voi(pixels, header)
            black, white = 0, 2 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1
        elif header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
            pixels = dicom.apply_windowing(pixels, header)
            black, white = dicom.apply_windowing(np.array([-1e15, 1e15]), header)  # its ends
        elif pixels.dtype == np.uint8 and header.BitsStored == 8:
            black, white = 0, 255
        else:
            own_range = True
            black, white = pixels.min(), pixels.max()
    pixels = to_greys(pixels, black, white)
    return 255 - pixels if header.PhotometricInterpretation == "MONOCHROME1" else pixels, own_range


def to_greys(pixels, black, white):
    """Map values (H, W) to float32 grey levels: black to 0, white to 255, what is outside clipped.

    All are 0 if black is white. Raises ValueError for values that are not finite.
    """
    if not np.isfinite([black, white]).all():
        raise ValueError("its pixels are not all finite")
    span = (float(white) - float(black)) or 1.0
    return ((pixels.astype(np.float64) - black) * (255 / span)).clip(0, 255).astype(np.float32)
