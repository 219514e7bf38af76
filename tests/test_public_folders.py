"""Folders as the public data sets have them: what is taken for what, and said."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import refusal
from PIL import Image

from common.data import dataset, layout, own_images, table


@pytest.fixture
def arrange(capsys):
    """Arrange paths written as texts; return {path: (split, labels, patient)} and the lines."""

    def told(*texts, rows=None):
        paths = [tuple(text.split("/")) for text in texts]
        if rows is not None:
            Path("labels.csv").write_text(rows, encoding="utf-8")
            rows, line = table.match(Path("labels.csv"), paths)
            print(line)
        items = layout.arrange(paths, rows)
        return {"/".join(item.path): item[1:] for item in items}, capsys.readouterr().out

    return told


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        ("Training Testing", "train test"),  # Kaggle's brain tumours
        ("train dev test", "train val test"),
        ("TRAIN Val TEST", "train val test"),
        ("train valid", "train val"),
        ("Train_set validation_set", "train val"),
        ("stage_2_train_images stage_2_test_images", "train test"),  # RSNA
    ],
)
def test_splits_have_any_usual_name(names, splits, arrange):
    names, splits = names.split(), splits.split()
    found, lines = arrange(*(f"{name}/{label}/0.png" for name in names for label in ("a", "B")))
    for name, split in zip(names, splits, strict=True):
        assert found[f"{name}/a/0.png"] == (split, ("a",), "")
        assert f"{name} is {split}" in lines
    assert ("there is no val" in lines) == ("val" not in splits)
    assert "labels: B, a, from the names of folders" in lines


def test_splits_may_lie_in_the_labels(arrange):
    found, lines = arrange("a/train/0.png", "b/train/0.png", "b/test/1.png")
    assert found["b/test/1.png"] == ("test", ("b",), "") and "test is test" in lines


def test_a_label_is_never_called_like_a_split_without_a_line(arrange):
    found, lines = arrange("train/0.png", "ship/0.png")
    assert found["train/0.png"] == ("", ("train",), "") and "labels: ship, train" in lines


def test_splits_without_one_for_training_are_refused(arrange):
    message = refusal(arrange, "Testing/a/0.png", "val/a/0.png")
    assert "Testing, val, are for test and val, and none is for training" in message


@pytest.mark.parametrize("around", ["archive", "archive/chest_xray", "images", "test"])
def test_single_folders_are_gone_down_through(around, arrange):
    found, lines = arrange(f"{around}/train/a/0.png", f"{around}/test/b/0.png")
    assert found[f"{around}/test/b/0.png"] == ("test", ("b",), "")
    assert f"all images lie in {around}/" in lines


def test_images_that_lie_twice_in_the_archive_are_read_once(arrange):
    twice = [
        f"{around}{split}/a/0.png" for around in ("", "chest_xray/") for split in ("train", "test")
    ]
    found, lines = arrange(*twice)
    assert {*found} == {"train/a/0.png", "test/a/0.png"}
    assert "left out: 2 images that lie beside the folders of splits or labels" in lines
    found, lines = arrange(*(f"up/{path}" for path in twice))
    assert {*found} == {"up/train/a/0.png", "up/test/a/0.png"}


@pytest.mark.parametrize("picture", ["banner.png", "chest/banner.png"])
def test_a_picture_beside_the_splits_does_not_mix_them(picture, arrange):
    for folders in ("chest/{split}/{label}", "{label}/{split}"):
        wanted = {
            f"{folders}/0.png".format(split=split, label=label): (split, (label,), "")
            for split in ("train", "test")
            for label in ("chest", "head")
        }
        found, lines = arrange(*wanted, picture)
        assert found == wanted and "left out: 1 images that lie beside" in lines


def test_masks_are_left_out(arrange):
    covid = [
        f"{label}/{kind}/0.png" for label in ("COVID", "Normal") for kind in ("images", "masks")
    ]
    found, lines = arrange(*covid)  # COVID-19 Radiography
    assert found == {
        "COVID/images/0.png": ("", ("COVID",), ""),
        "Normal/images/0.png": ("", ("Normal",), ""),
    }
    assert "left out: 2 images that are masks" in lines and "COVID/masks/0.png" in lines
    found, lines = arrange("benign/a (1).png", "benign/a (1)_mask.png", "benign/a (1)_mask_1.png")
    assert [*found] == ["benign/a (1).png"]  # breast ultrasound, BUSI
    found, lines = arrange("masks/0.png", "masks/1.png")
    assert len(found) == 2 and "labels: masks" in lines  # nothing else is there
    assert len(arrange("with_mask/0.png", "without_mask/0.png")[0]) == 2  # faces


def test_folders_of_parts_and_patients_are_no_labels(arrange):
    found, _ = arrange("images_001/images/0.png", "images_002/images/1.png")
    assert {labels for _, labels, _ in found.values()} == {()}
    found, _ = arrange("patient00001/study1/view1.jpg", "patient00002/study1/view1.jpg")
    assert found["patient00002/study1/view1.jpg"] == ("", (), "patient00002")


def test_labels_that_differ_in_case_or_unicode_form_only_are_one(arrange, divide):
    composed, apart = (unicodedata.normalize(form, "Ödem") for form in ("NFC", "NFD"))
    found, lines = arrange(
        f"train/{composed}/0.png",
        f"test/{apart}/0.png",
        "train/Normal/1.png",
        "train/Normal/2.png",
        "test/NORMAL/3.png",
    )
    assert {labels for _, labels, _ in found.values()} == {(composed,), ("Normal",)}
    assert "Normal, NORMAL are one label, Normal" in lines and f"{apart}, " not in lines


# Splits and numbers


@pytest.fixture
def divide(capsys):
    """Divide images given as "split label+label"; return what layout.divide does, and the lines."""

    def told(*images, patients=None):
        items = []
        for number, text in enumerate(images):
            split, labels = text.split(" ")
            patient = patients[number] if patients else ""
            items.append(
                layout.Item(
                    (f"{number}.png",), split, tuple(filter(None, labels.split("+"))), patient
                )
            )
        return *layout.divide(items), capsys.readouterr().out

    return told


def test_labels_that_training_lacks_are_left_out(divide):
    parts, names, numbers, line = divide("train a", "train b", "test a", "test c", "val d")
    assert parts == {"train": [0, 1], "val": [], "test": [2]} and names == ["a", "b"]
    assert numbers[:3].tolist() == [[0], [1], [0]]
    assert "left out: 2 images that have labels of no training image (c, d)" in line


def test_several_labels_are_columns(divide):
    parts, names, numbers, _ = divide("train a", "train b", "test a+c")  # left out: classes stay
    assert parts["test"] == [] and numbers[:2].tolist() == [[0], [1]]
    _, names, numbers, _ = divide("train a+b", "train ", "train b")
    assert names == ["a", "b"] and numbers.tolist() == [[1, 1], [0, 0], [0, 1]]
    _, names, numbers, _ = divide("train a", "train ")
    assert names == ["no a", "a"] and numbers.tolist() == [[1], [0]]


def test_a_patient_is_in_one_split(divide):
    patients = [f"p{number // 5}" for number in range(500)]
    parts, names, numbers, _ = divide(*[" "] * 500, patients=patients)
    who = [{patients[place] for place in places} for places in parts.values()]
    assert [len(places) for places in parts.values()] == [350, 50, 100]
    assert not who[0] & who[1] | who[0] & who[2] | who[1] & who[2]
    assert names == [] and numbers.shape == (500, 0)
    *_, line = divide("train ", "test ", patients=["p1", "p1"])
    assert "1 images are of patients in another split too, the first is 1.png" in line


# Tables


def test_nih(arrange):
    found, lines = arrange(
        "images_001/images/00000001_000.png",
        "images_002/images/00000002_000.png",
        "images_002/images/00000003_000.png",
        rows="Image Index,Finding Labels,Follow-up #,Patient ID,OriginalImage[Width,Height],\n"
        "00000001_000.png,Cardiomegaly|Effusion,0,1,2682,2749,\n"
        "00000002_000.png,No Finding,1,2,2682,2749,\n"
        "00000009_000.png,Mass,1,9,2682,2749,\n",
    )
    assert found == {
        "images_001/images/00000001_000.png": ("", ("Cardiomegaly", "Effusion"), "1"),
        "images_002/images/00000002_000.png": ("", (), "2"),
    }
    assert "files from Image Index, labels from Finding Labels, patients from Patient ID" in lines
    assert "left out: 1 images that have no row in LABELS_CSV" in lines


def test_chexpert(arrange):
    rows = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Cardiomegaly,Edema,Fracture\n"
    for number, values in enumerate(["1.0,,,", ",1.0,-1.0,0.0", ",,1.0,"], start=1):
        path = f"CheXpert-v1.0-small/train/patient0000{number}/study1/view1_frontal.jpg"
        rows += f"{path},Female,68,Frontal,AP,{values}\n"
    paths = [f"patient0000{number}/study1/view1_frontal.jpg" for number in (1, 2, 3)]
    found, lines = arrange(*paths, rows=rows)
    assert [found[path] for path in paths] == [
        ("", (), "patient00001"),
        ("", ("Cardiomegaly",), "patient00002"),
        ("", ("Edema",), "patient00003"),
    ]
    assert "labels from Cardiomegaly, Edema, 1 values of -1 (uncertain) taken as 0" in lines
    found, lines = arrange(*(f"train/{path}" for path in paths), rows=rows)
    assert found[f"train/{paths[1]}"] == ("train", ("Cardiomegaly",), "patient00002")


def test_rsna(arrange):
    rows = "patientId,x,y,width,height,Target\nab1,,,,,0\n"
    rows += "cd2,264.0,152.0,213.0,379.0,1\ncd2,562.0,152.0,256.0,453.0,1\n"
    found, lines = arrange(
        "stage_2_train_images/ab1.dcm", "stage_2_train_images/cd2.dcm", rows=rows
    )
    assert [labels for _, labels, _ in found.values()] == [(), ("Target",)]
    assert "files from patientId, labels from Target" in lines


def test_a_table_may_have_semicolons_and_a_byte_order_mark(arrange):
    rows = "\ufeffname;Label\na.png;Normal\nb;Pneumonia\n"
    found, _ = arrange("a.png", "b.png", rows=rows)
    assert found == {"a.png": ("", ("Normal",), ""), "b.png": ("", ("Pneumonia",), "")}


def test_the_files_are_the_column_that_names_most_images(arrange):
    rows = "label,id,age\n" + "".join(f"{n % 2},{n},{n // 2}\n" for n in range(100))
    found, lines = arrange(*(f"{n}.png" for n in range(40)), rows=rows)
    assert "files from id, labels from label" in lines and len(found) == 40
    assert all(found[f"{n}.png"][1] == (str(n % 2),) for n in range(40))


def test_files_that_differ_in_their_suffix_only_are_told_apart(arrange):
    rows = "file,label\n0.png,a\n0.dcm,b\n"
    found, _ = arrange("0.png", "0.dcm", rows=rows)
    assert [labels for _, labels, _ in found.values()] == [("a",), ("b",)]


def test_a_row_without_the_patient_does_not_make_it_unknown(arrange):
    found, _ = arrange("0.png", rows="file,label,patient\n0.png,a,p1\n0.png,b,\n")
    assert found["0.png"] == ("", ("a", "b"), "p1")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("file,label\nb.png,x\n", "names no image of the folder in any of its columns, file"),
        ("file,age\na.png,17\n", "has no column of labels: call it label"),
        ("", "names no image"),
    ],
)
def test_a_table_that_is_not_understood_is_refused(rows, words, arrange):
    assert words in refusal(lambda: arrange("a.png", rows=rows))


def test_a_table_of_other_letters_is_refused():
    Path("labels.csv").write_bytes("file,label\na.png,Ödem\n".encode("latin-1"))
    assert "Save it as .csv, in UTF-8" in refusal(table.match, Path("labels.csv"), [("a.png",)])


def test_a_table_that_is_there_is_offered(capsys):
    Path("scans").mkdir()
    others = "".join(f"{number}.png,x\n" for number in range(3000))  # images that are not there
    Path("scans/labels.csv").write_text(f"file,label\n{others}a.png,x\n")
    Path("train 1.csv").write_text("file,label\na,x\n")
    Path("scans/other.csv").write_text("name,price\nfish,3\n")
    table.offer(Path("scans"), [("a.png",)])
    first, second = capsys.readouterr().out.splitlines()
    assert "--LABELS_CSV=scans/labels.csv takes them" in first
    assert "'--LABELS_CSV=train 1.csv' takes them" in second


# Reading


def write_images(*paths, like=""):
    """Write an image of its own at each path, but for those that are to be like another one."""
    for number, path in enumerate(paths):
        random = np.random.default_rng(0 if like and like in path else number + 1)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (28, 28), np.uint8)).save(path)


def read(**options):
    own_images.read_once("./scans", Path("data/scans_28.npz"), 28, **options)
    return dict(np.load("data/scans_28.npz"))


def test_identical_images_on_both_sides_of_a_split_are_counted_and_named(capsys):
    same = [f"scans/{split}/a/{name}.png" for split in ("train", "test") for name in ("twin", "x")]
    write_images(*same, like="twin")
    read()
    told = capsys.readouterr().out
    assert (
        "1 images are identical to images in another split too, the first is test/a/twin.png"
        in told
    )


def test_the_labels_are_those_of_the_table_and_read_again_when_it_changes(capsys):
    write_images(*(f"scans/images_001/{name}.png" for name in "abcdefghij"))
    read()
    assert "labels.csv" not in capsys.readouterr().out
    rows = "".join(
        f"{name}.png,{'Mass|Edema' if name in 'abc' else 'Mass'}\n" for name in "abcdefghij"
    )
    Path("scans/labels.csv").write_text(f"Image Index,Finding Labels\n{rows}")
    Path("data/scans_28.npz").unlink()
    arrays = read()
    assert arrays["train_labels"].shape == (7, 0) and [*arrays["label_names"]] == []
    assert "--LABELS_CSV=" in capsys.readouterr().out  # it is there and not named
    arrays = read(labels_csv="scans/labels.csv")
    labels = np.concatenate([arrays[f"{split}_labels"] for split in layout.SPLITS])
    assert [*arrays["label_names"]] == ["Edema", "Mass"]
    assert labels.sum(axis=0).tolist() == [3, 10] and "have changed" in capsys.readouterr().out
    Path("scans/labels.csv").write_text(
        f"Image Index,Finding Labels\n{rows}".replace("Mass", "Node")
    )
    assert [*read(labels_csv="scans/labels.csv")["label_names"]] == ["Edema", "Node"]
    assert "does not exist" in refusal(lambda: read(labels_csv="scans/no.csv"))


def test_a_table_goes_with_a_folder_only():
    Path("mine.npz").write_bytes(b"")
    message = refusal(lambda: dataset.load("./mine.npz", labels_csv="a.csv"))
    assert "LABELS_CSV=a.csv: legal with a folder of images as DATASET" in message
