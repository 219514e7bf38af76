"""The house: who imports whom, scripts that start from anywhere, and the snippets of the docs."""

import ast
import os
import re

import pytest
import torch
from conftest import REPO

SCRIPTS = {"train_model", "generate_report", "generate_images"}


def imports(path):
    """The top-level names of the modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module.split(".")[0])
    return names


def test_the_networks_import_torch_and_nothing_of_ours():
    assert imports(REPO / "dcgan.py") == {"torch"}


@pytest.mark.parametrize(
    ("files", "above"),
    [
        ("common/**/*.py", {"report", *SCRIPTS}),
        ("report/*.py", SCRIPTS),
        ("generate_report.py", {"train_model", "generate_images"}),
        ("generate_images.py", {"train_model", "generate_report", "report"}),
        ("train_model.py", {"generate_report", "generate_images", "report"}),
    ],
)
def test_imports_run_one_way(files, above):
    found = {path: imports(path) for path in REPO.glob(files)}
    assert any("common" in names for names in found.values())
    assert not {path: names & above for path, names in found.items() if names & above}


def test_the_scripts_start_from_any_working_directory_and_on_a_safe_path(start, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = {"cwd": tmp_path, "env": environment | {"PYTHONSAFEPATH": "1"}}
    processes = {script: start(f"{script}.py", "--help", **options) for script in SCRIPTS}
    for script, process in processes.items():
        text, _ = process.communicate()
        assert process.returncode == 0, text
        assert f"usage: {script}.py [--NAME=VALUE ...]" in text


def test_the_readme_begins_with_a_page_to_play_a_clone_and_an_environment():
    text = (REPO / "README.md").read_text()
    assert re.search(r"\]\(([^)]+)\)", text)[1] == "docs/play.html"  # the first link
    commands = re.findall(r"```\n(.*?)```", text, re.DOTALL)[0].splitlines()
    assert re.match("git clone .* && python3 -m venv .venv", commands[0])
    assert re.match(r"pip install -r requirements.txt && python train_model.py", commands[1])
    assert text.index("/whl/cpu") < text.index("## ")


def test_the_readmes_snippet_draws_images(train):
    train("--EPOCHS=10", "--METRIC_IMAGES=0")  # the run that the README's first command makes
    snippet = re.search(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)[1]
    assert "load_generator" in snippet
    names = {}
    exec(snippet, names)
    assert names["images"].shape == names["pixels"].shape == (16, 1, 28, 28)
    names["images"].numpy()  # for pyplot
    assert names["images"].abs().max() <= 1 and names["pixels"].dtype == torch.uint8


def test_the_snippet_on_few_labels_fits_a_classifier(train, phantom_dir, capsys):
    train("--EPOCHS=10", "--METRIC_IMAGES=0")
    os.symlink(phantom_dir, "data")
    snippets = re.findall(r"```python\n(.*?)```", (REPO / "docs/FILES.md").read_text(), re.DOTALL)
    capsys.readouterr()  # of the training
    (snippet,) = [snippet for snippet in snippets if "LogisticRegression" in snippet]
    names = {}
    exec(snippet, names)
    assert names["features"].shape == (100, 2048) and not names["features"].requires_grad
    assert 0.5 < float(capsys.readouterr().out) <= 1  # the AUC of the one line that it prints
