"""Constants are edited by hand: whatever becomes of a comment, what trains can be read again."""

import ast
import re
import runpy
from pathlib import Path

import pytest
from conftest import REPO

from common import errors, settings

SCRIPTS = ["train_model.py", "generate_report.py", "generate_images.py"]
BENCHMARKS = [  # without those that others import
    f"benchmarks/{path.name}"
    for path in (REPO / "benchmarks").glob("*.py")
    if "settings.override(globals())" in path.read_text()
]
CONSTANT = re.compile(r"^([A-Z][A-Z0-9_]*) = (.+?)  # (.+)$", re.MULTILINE)


def edited(script, edit, folder):
    """Write a copy of a script with its constants edited and return its globals.

    edit: a function of name, value and comment, all strings, that returns the new line.
    """
    source = (REPO / script).read_text()
    source = CONSTANT.sub(lambda match: edit(*match.groups()), source)
    (folder / script).write_text(source)
    return runpy.run_path(str(folder / script), run_name="edited")


def shipped(script):
    """Return the constants of a script, {name: value}, as they are in the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str((REPO / script).parent))  # as Python does for a script
        return settings.override(runpy.run_path(str(REPO / script), run_name="shipped"), [])


def bracket_first(name, value, comment):
    text, bracket, legal = comment.partition(" [")
    return f"{name} = {value}  # {bracket.strip()}{legal} {text}"


def refusal(namespace, *arguments):
    """Return the one line in which a script's constants are refused."""
    with pytest.raises(errors.UserError) as refused:
        settings.override(namespace, list(arguments))
    message = str(refused.value)
    assert message.startswith("error: ") and message.isprintable()
    return message


@pytest.mark.parametrize("script", [*SCRIPTS, *BENCHMARKS, "tests/campaign.py"])
def test_constants_are_legal_as_they_are(script):
    assert shipped(script)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "edit",
    [
        bracket_first,
        lambda name, value, comment: f"{name} = {value}  # see [1] and [the docs]; {comment}",
        lambda name, value, comment: f"{name} = {value}  # {comment} was 7",
        lambda name, value, comment: f"{name} = {value}  # {comment}\n{name} = {value}",
        lambda name, value, comment: (
            f"{name} = {value}  # {comment}\nif True:\n    {name} = {value}"
        ),
        lambda name, value, comment: f"{name} = (\n    {value}  # {comment}\n)",
        lambda name, value, comment: f"{name}: object = {value}  # {comment}",
    ],
    ids=["bracket first", "footnotes", "text behind", "set again", "set if", "in lines", "typed"],
)
def test_a_bracket_counts_wherever_it_is(script, edit, tmp_path):
    namespace, before = edited(script, edit, tmp_path), shipped(script)
    assert settings.override(namespace, []) == before
    for name, value in before.items():
        if not isinstance(value, str):
            assert f"error: {name}=-7: legal " in refusal(namespace | {name: -7})
            assert f"error: {name}=-7: legal " in refusal(namespace, f"--{name}=-7")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("comment", ["", "  #", "  # mine", "  # as in [1]", "  # [1 to]"])
def test_without_a_bracket_a_number_is_refused_in_those_words(script, comment, tmp_path):
    for changed, value in shipped(script).items():

        def edit(name, text, old, changed=changed):
            return f"{name} = {text}{comment if name == changed else f'  # {old}'}"

        namespace = edited(script, edit, tmp_path)
        if type(value) in (int, float):
            assert f"{changed}={value} has no legal range in its comment" in refusal(namespace)
            assert f"{changed}=8 has no legal range" in refusal(namespace, f"--{changed}=8")
        else:  # a string or a boolean says itself what it is
            assert settings.override(namespace, []) == shipped(script)


def script_with(lines, folder, encoding="utf-8"):
    path = folder / "apples.py"
    path.write_text(f'"""Apples."""\n\n{lines}\n', encoding=encoding)
    return runpy.run_path(str(path))


@pytest.mark.parametrize(
    ("lines", "constants"),
    [
        ("N_CRITIC = 2  # steps of the critic [1 to 10]", {"N_CRITIC": 2}),
        ('NOTE = "a try"', {"NOTE": "a try"}),
        ("LOUD = True", {"LOUD": True}),
        ("LOUD = COLD = True", {"LOUD": True, "COLD": True}),
        ("LOUD, NOTE = True, 'a'", {"LOUD": True, "NOTE": "a"}),
        ("def f():\n    INNER = 1\n\nNOTE = 'below a function'", {"NOTE": "below a function"}),
        ("_LIMIT = 3", {}),
        ("SHAPES = [1, 2]\nTABLE = {}\nNAMES = {'A'}\nNAMES |= {'B'}", {}),
        ("# mine\nLOUD = True\n# yours\nNOTE = 'a'", {"LOUD": True, "NOTE": "a"}),
    ],
)
def test_own_constants_are_settings_as_well(lines, constants, tmp_path):
    assert settings.override(script_with(lines, tmp_path), []) == constants


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("N_CRITIC = 2  # steps of the critic", "N_CRITIC=2 has no legal range in its comment"),
        ("EPOCHS = [50]  # [1 to 100]", "EPOCHS=[50]: legal is a whole number from 1 to 100"),
        ("EPOCHS = None  # [1 to 100]", "EPOCHS=None: legal is a whole number from 1 to 100"),
        ("EPOCHS = 5  # was [1 to 9], now [1 to 99]", "EPOCHS has 2 legal ranges"),
        ("LOUD = 1  # [True, False]", "LOUD=1: legal values are True, False"),
        ("PLACE = None", "PLACE=None: legal is a string"),
        ("PLACE = b'a'", "PLACE=b'a': legal is a string"),
        ("NAME_DIR = 'a\\0b'", "NAME_DIR=a\\x00b: "),
        ("NAME_DIR = '\\ud800'", "NAME_DIR=\\ud800: "),
        ("NAME_DIR = '~no_such_user/a'", "NAME_DIR=~no_such_user/a: there is no such home"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(line, message, tmp_path):
    assert message in refusal(script_with(line, tmp_path))


def test_the_command_line_can_mend_a_wrong_value(tmp_path):
    namespace = script_with("EPOCHS = None  # [1 to 9]\nLOUD = 3  # [True, False]", tmp_path)
    mended = settings.override(namespace, ["--EPOCHS=5", "--LOUD=True"])
    assert mended == {"EPOCHS": 5, "LOUD": True}


@pytest.mark.parametrize(
    ("lines", "encoding"),
    [
        ("NOTE = 'Äpfel'  # Äpfel", "utf-8-sig"),
        ("NOTE = 'Äpfel'  # Äpfel\r\n", "utf-8"),
    ],
    ids=["BOM", "CRLF"],
)
def test_every_file_that_python_runs_is_read(lines, encoding, tmp_path):
    assert settings.override(script_with(lines, tmp_path, encoding), []) == {"NOTE": "Äpfel"}


def test_a_declared_encoding_is_read(tmp_path):
    path = tmp_path / "apples.py"
    path.write_bytes("# coding: latin-1\n'''A.'''\nNOTE = 'Äpfel'  # Äpfel\n".encode("latin-1"))
    assert settings.override(runpy.run_path(str(path)), []) == {"NOTE": "Äpfel"}


@pytest.mark.parametrize("name", ["DATA_DIR", "MODELS_DIR", "OUT"])
@pytest.mark.parametrize("where", ["in the script", "on the command line"])
def test_a_tilde_is_the_home_folder(name, where, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    value, arguments = ("~/a", []) if where == "in the script" else ("", [f"--{name}=~/a"])
    namespace = script_with(f"{name} = {value!r}\nNOTE = '~/a'", tmp_path)
    constants = {name: str(tmp_path / "a"), "NOTE": "~/a"}  # a note is no folder
    assert settings.override(namespace, arguments) == constants


def test_what_trains_is_resumed_and_reported(run, small, tmp_path):
    def edit(name, value, comment):
        if isinstance(ast.literal_eval(value), (str, bool)):
            return f"{name} = {value}  # mine"
        return bracket_first(name, value, comment)

    edited("train_model.py", edit, tmp_path)
    script = tmp_path / "train_model.py"
    script.write_bytes(b"\xef\xbb\xbf" + script.read_bytes())
    own = "\nN_CRITIC = 2  # mine [1 to 5]\nNOTE = 'a try'\nLOUD = True\n\nMAY_CHANGE"
    script.write_text(script.read_text().replace("\nMAY_CHANGE", own, 1))
    small += ["--METRIC_IMAGES=0"]
    assert run(str(script), *small, "--EPOCHS=1").status == 0
    resumed = run(str(script), *small, "--EPOCHS=2")
    assert resumed.status == 0 and "from epoch 2" in resumed.text
    parts = ["BLIND_TEST", "TRAINING", "NUMBERS", "DIVERSITY", "COPIES", "LATENT_SPACE", "FAILURES"]
    report = run("generate_report.py", *(f"--{part}=False" for part in parts), "--N_SYNTHETIC=20")
    assert report.status == 0 and Path("images/phantom/report.html").exists()


@pytest.mark.parametrize(
    ("name", "cause"), [("DEVICE", "Expected one of cpu, "), ("DTYPE", "torch has no such")]
)
def test_a_choice_whose_comment_lost_its_brackets_is_checked_by_torch(
    run, small, tmp_path, name, cause
):
    def edit(constant, value, comment):
        return f"{constant} = {value}  # {'mine' if constant == name else comment}"

    edited("train_model.py", edit, tmp_path)
    result = run(str(tmp_path / "train_model.py"), *small, f"--{name}=fast")
    assert result.status == 1 and f"error: {name}=fast: {cause}" in result.text
