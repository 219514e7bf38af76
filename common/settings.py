"""Override the UPPER_CASE constants at the top of a script from the command line.

The comment behind a constant says what it means and, in brackets, its legal values:

    EPOCHS = 50  # passes over the training images [1 to 100000]
    DEVICE = "auto"  # where to compute ["auto", "cpu", "cuda"]

--EPOCHS=20 then sets the constant, --help shows the comment, and a value that is not in the
brackets is refused, whether it comes from the command line or from the script. A range with a
decimal point or an exponent allows any number, one without allows integers only; no brackets mean
any string.
"""

import argparse
import ast
import difflib
import io
import re
import tokenize
from pathlib import Path

RENAMED = {"PRECISION": "DTYPE"}  # constants of earlier versions, and their names now


class UserError(SystemExit):
    """An error the user can fix: Python prints its one-line message and exits with status 1."""

    def __init__(self, message):
        super().__init__(f"error: {message}")


def override(namespace, arguments=None):
    """Set a script's constants from the command line and check all of them.

    namespace: the script's globals(); arguments: a list of strings, by default sys.argv[1:].
    Returns all constants, {name: value}. Raises UserError for an unknown name, a wrong type or a
    value that is not legal.
    """
    constants = read_constants(Path(namespace["__file__"]).read_text(encoding="utf-8"), namespace)
    parser = argparse.ArgumentParser(
        description=namespace["__doc__"],
        usage="%(prog)s [--NAME=VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = None
    for name, (heading, comment) in constants.items():
        if group is None or group.title != heading:
            group = parser.add_argument_group(heading)
        text = f"{comment} (default: {namespace[name]!r})".replace("%", "%%")
        group.add_argument(f"--{name}", metavar="VALUE", help=text)
    parser.error = refuse  # argparse would print two lines and exit with status 2
    given, unknown = parser.parse_known_args(arguments)
    for number, word in enumerate(unknown):
        name, _, value = word.lstrip("-").partition("=")
        if RENAMED.get(name) in constants:
            value = value or "".join(unknown[number + 1 : number + 2])
            refuse(f"{name} is called {RENAMED[name]} now: --{RENAMED[name]}={value}")
        near = difflib.get_close_matches(name.upper(), constants, n=1)
        hint = f"did you mean --{near[0]}?" if near else "--help lists the settings."
        refuse(f"{word}: there is no such setting; {hint}")
    for name, (_, comment) in constants.items():
        text = getattr(given, name)
        value = namespace[name] if text is None else convert(text, namespace[name])
        namespace[name] = legal(name, value, comment)
    return {name: namespace[name] for name in constants}


def refuse(message):
    raise UserError(message)


def read_constants(source, namespace):
    """Return {name: (heading, comment)} of a script's UPPER_CASE strings, numbers and booleans."""
    comments, headings = {}, {0: "Settings"}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            (headings if column == 0 else comments)[row] = token.string.strip("# -")
    constants = {}
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        name = getattr(target, "id", "")
        if name.isupper() and node.end_lineno in comments:  # a setting has a comment
            if isinstance(namespace[name], (set, list, dict, tuple)):
                continue
            heading = max(row for row in headings if row < node.lineno)
            constants[name] = (headings[heading], comments[node.end_lineno])
    return constants


def convert(text, default):
    """Convert a string from the command line to the type of the default, if that is possible."""
    if isinstance(default, bool):
        return {"True": True, "False": False}.get(text, text)
    for kind in (int, float):
        if isinstance(default, (int, float)):
            try:
                return kind(text)
            except ValueError:
                continue
    return text


def legal(name, value, comment):
    """Return the value if the brackets at the end of the comment allow it, else raise UserError."""
    bracket = re.search(r"\[([^\]]*)\]$", comment)
    if bracket is None:
        if not isinstance(value, str):
            refuse(f"{name}={value}: legal is a text, in quotes")
        return value
    text = bracket.group(1)
    if " to " not in text:
        allowed = ast.literal_eval(f"[{text}]")
        if not any(value == a and type(value) is type(a) for a in allowed):
            refuse(f"{name}={value}: legal values are {text}")
        return value
    low, high = (ast.literal_eval(bound) for bound in text.split(" to "))
    whole = isinstance(low, int) and isinstance(high, int)
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # nan compares false with everything
        kind = "a whole number" if whole else "a number"
        refuse(f"{name}={value}: legal is {kind} from {low} to {high}")
    return value if whole else float(value)
