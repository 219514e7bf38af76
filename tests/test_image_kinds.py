"""DICOM and TIFF files as they come from scanners: padding, bits, and files of wrong names."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from common.data import image_file, own_images


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_dicom(path, pixels, stored=None, **elements):
    """Write a DICOM file of pixels (H, W); stored: its bits, by default all of an element."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
    header.Rows, header.Columns = pixels.shape
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.BitsAllocated = 8 * pixels.dtype.itemsize
    header.BitsStored = stored or header.BitsAllocated
    header.HighBit = header.BitsStored - 1
    for name, value in elements.items():
        setattr(header, name, value)
    header.PixelData = pixels.tobytes()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)


def read(path):
    return image_file.read_image(Path(path), 28)


@pytest.mark.parametrize("padding", [-2000, 63536])  # as signed and as unsigned
def test_padding_is_black_and_left_out_of_the_range(padding):
    pixels = np.linspace(0, 4095, 112).astype(np.int16)[None].repeat(112, axis=0)
    write_dicom("whole.dcm", pixels)
    whole, _ = read("whole.dcm")
    pixels[:24] = -2000
    import pydicom

    write_dicom("a.dcm", pixels)
    header = pydicom.dcmread("a.dcm")
    header.add_new("PixelPaddingValue", "SS" if padding < 0 else "US", padding)
    header.save_as("a.dcm")
    seen, own_range = read("a.dcm")
    assert own_range and (seen[:6] == 0).all() and np.array_equal(seen[6:], whole[6:])
    header.PhotometricInterpretation = "MONOCHROME1"
    header.save_as("a.dcm")
    inverted, _ = read("a.dcm")
    assert (inverted[:6] == 0).all() and np.abs(255 - seen[6:] - inverted[6:]).max() <= 1


def test_a_range_of_padding_and_a_monochrome1_with_65535():
    pixels = np.full((56, 56), 1000, np.uint16)
    pixels[:, 28:] = 3000
    pixels[:8], pixels[8:16] = 65535, 65500
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 65535}
    write_dicom("a.dcm", pixels, **inverted, PixelPaddingRangeLimit=65500)
    seen, _ = read("a.dcm")
    assert (seen[:8] == 0).all() and (seen[8:, :14] == 255).all() and (seen[8:, 14:] == 0).all()


def test_an_image_of_nothing_but_padding_is_black():
    write_dicom("a.dcm", np.full((56, 56), 7, np.uint16), PixelPaddingValue=7)
    assert read("a.dcm")[0].max() == 0


def test_bytes_are_the_same_picture_however_they_are_stored():
    pixels = np.random.default_rng(0).integers(50, 200, (56, 56)).astype(np.uint8)
    write_dicom("plain.dcm", pixels)
    write_dicom("rescaled.dcm", pixels, RescaleSlope=1, RescaleIntercept=0)
    write_dicom("wide.dcm", pixels.astype(np.uint16), stored=8)
    write_dicom("both.dcm", pixels.astype(np.uint16), stored=8, RescaleSlope=1, RescaleIntercept=0)
    plain, own_range = read("plain.dcm")
    assert not own_range and np.abs(plain - pixels.reshape(28, 2, 28, 2).mean((1, 3))).max() <= 1
    for name in ("rescaled", "wide", "both"):
        seen, own_range = read(f"{name}.dcm")
        assert not own_range and np.array_equal(seen, plain)
    write_dicom("twelve.dcm", pixels.astype(np.uint16), stored=12)
    assert read("twelve.dcm")[1]


def test_a_file_is_what_its_first_bytes_say():
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56)).astype(np.uint8)
    for name in ("a.dicom", "b", "c.png", "d.IMA", "1.2.840"):
        write_dicom(f"scans/{name}", pixels)
    for name in ("e.dcm", "f", "g.jfif", "h.tif"):
        Image.fromarray(pixels).save(f"scans/{name}", format="png")
    Path("scans/notes.txt").write_text("nothing")
    Path("scans/empty").write_bytes(b"")
    write_dicom("scans/DICOMDIR", pixels)
    found, passed_over = own_images.list_images(Path("scans"))
    assert [path for (path,), _, _ in found] == sorted(
        ["a.dicom", "b", "c.png", "d.IMA", "1.2.840", "e.dcm", "f", "g.jfif", "h.tif"]
    )
    assert passed_over == "without suffix 2, .txt 1"
    wanted = read("scans/a.dicom")[0]
    for (path,), _, _ in found:  # Pillow rounds bytes otherwise than numbers
        assert np.abs(read(f"scans/{path}")[0].astype(int) - wanted).max() <= 1


def test_the_window_of_an_enhanced_file_is_that_of_its_first_frame():
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    pixels = np.linspace(0, 4095, 56).astype(np.uint16)[None].repeat(56, axis=0)
    write_dicom("plain.dcm", pixels, stored=12, WindowCenter=1000, WindowWidth=500)
    window, frame = pydicom.Dataset(), pydicom.Dataset()
    window.WindowCenter, window.WindowWidth = 1000, 500
    frame.FrameVOILUTSequence = [window]
    write_dicom("enhanced.dcm", pixels, stored=12, PerFrameFunctionalGroupsSequence=[frame])
    seen, own_range = read("enhanced.dcm")
    assert not own_range and np.array_equal(seen, read("plain.dcm")[0])


def test_what_is_transparent_in_a_grey_png_is_black():
    pixels = np.full((56, 56), 255, np.uint8)
    pixels[10:46, 10:46] = 100
    Image.fromarray(pixels).save("a.png", transparency=255)
    seen, own_range = read("a.png")
    assert not own_range and seen[0].max() == 0 and seen[14, 14] == 100


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_an_int8_tiff_is_shifted_and_not_wrapped(kind):
    pixels = np.linspace(np.iinfo(kind).min, np.iinfo(kind).max, 56).round().astype(kind)
    tifffile.imwrite("a.tif", pixels[None].repeat(56, axis=0))
    seen, own_range = read("a.tif")
    wanted = np.linspace(0, 255, 56).reshape(28, 2).mean(axis=1)
    assert not own_range and np.abs(seen[0] - wanted).max() <= 1
