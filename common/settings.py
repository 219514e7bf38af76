"""Override the UPPER_CASE constants at the top of a script from the command line.

The comment behind a constant says what it means and, in brackets, its legal values:

    EPOCHS = 50  # passes over the training images [1 to 100000]
    DEVICE = "auto"  # where to compute ["auto", "cpu", "cuda"]

--EPOCHS=20 then sets the constant, --help shows the comment, and a value that is not in the
brackets is refused, whether it comes from the command line or from the script. A range with a
decimal point or an exponent allows any number, one without allows integers only. Without brackets
any string is legal, and True and False, but no number: what is trained with a number that is of no
use could be found out hours later. A name that begins with _ is no setting.
"""

import argparse
import ast
import contextlib
import difflib
import functools
import io
import os
import re
import tokenize
import unicodedata

from common.errors import UserError


def override(namespace, arguments=None):
    """Set a script's constants from the command line and check all of them.

    namespace: the script's globals(); arguments: a list of strings, by default sys.argv[1:].
    Returns all constants, {name: value}. Raises UserError for an unknown name, a wrong type, a
    value that is not legal or a number without a legal range.
    """
    constants = read_constants(namespace)
    parser = argparse.ArgumentParser(
        description=namespace["__doc__"],
        usage="%(prog)s [--NAME=VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    group = functools.cache(parser.add_argument_group)  # one for each heading
    for name, (heading, comment) in constants.items():
        text = f"{comment} (default: {namespace[name]!r})".replace("%", "%%")
        group(heading).add_argument(f"--{name}", metavar="VALUE", help=text)
    parser.error = refuse  # argparse would print two lines and exit with status 2
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        near = difflib.get_close_matches(name.upper(), constants, n=1)
        hint = f"did you mean --{near[0]}?" if near else "--help lists the settings."
        refuse(f"{unknown[0]}: there is no such setting; {hint}")
    for name, (_, comment) in constants.items():
        found, text = brackets(comment), getattr(given, name)
        if len(found) > 1:
            refuse(f"{name} has {len(found)} legal ranges in its comment; leave one of them there")
        allowed = found[0] if found else None
        value = namespace[name] if text is None else convert(text, namespace[name], allowed)
        namespace[name] = legal(name, value, allowed)
    return {name: namespace[name] for name in constants}


def refuse(message):
    raise UserError(message)


def read_constants(namespace):
    """Return {name: (heading, comment)} of a script's UPPER_CASE strings, numbers and booleans.

    A constant is a setting whatever its comment, and wherever it is assigned outside functions; the
    first comment behind an assignment counts. A set, list, dict or tuple is none, unless its
    comment has legal values.
    """
    with tokenize.open(namespace["__file__"]) as file:  # reads all that Python runs, as with a BOM
        source = file.read()
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    headings = {row: text for row, text in comments.items() if text.startswith("# ---")}
    headings = {0: "Settings"} | headings
    constants = {}
    for node in assignments(ast.parse(source)):
        rows = range(node.lineno, node.end_lineno + 1)
        comment = next((comments[row].strip("# ") for row in rows if row in comments), "")
        heading = headings[max(row for row in headings if row < node.lineno)].strip("# -")
        for target in getattr(node, "targets", None) or [node.target]:
            for part in ast.walk(target):
                name = getattr(part, "id", "")
                if not name.isupper() or name.startswith("_") or name not in namespace:
                    continue
                group = isinstance(namespace[name], (set, frozenset, list, dict, tuple))
                if not constants.get(name, ("", ""))[1] and (not group or brackets(comment)):
                    constants[name] = (heading, comment)
    return constants


def assignments(node):
    """Yield the assignments in a script outside functions and classes, in the order of lines."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            yield child
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from assignments(child)


def brackets(comment):
    """Return what each pair of brackets in a comment allows, (low, high) or [value, value, ...]."""
    found = []
    for text in re.findall(r"\[([^\]]*)\]", comment):
        low, to, high = text.partition(" to ")
        try:
            values = ast.literal_eval(f"({low}, {high})" if to else f"[{text}]")
        except (SyntaxError, ValueError):  # brackets around something else
            continue
        numbers = all(type(value) in (int, float) for value in values)
        if len(values) > 1 and (numbers or not to):  # one value alone is a footnote: [1]
            found.append(values)
    return found


def convert(text, default, allowed):
    """Convert a string from the command line to the type of the legal values or of the default."""
    if isinstance(default, bool) and allowed is None:
        allowed = [True, False]
    if isinstance(allowed, list):
        return next((value for value in allowed if str(value) == text), text)
    for kind in (int, float) if allowed or isinstance(default, (int, float)) else ():
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def legal(name, value, allowed):
    """Return the value, a home folder's ~ expanded, if it is legal, else raise UserError."""
    if allowed is None:
        if isinstance(value, str):
            return legal_string(name, value)
        if isinstance(value, bool):
            return value
        if not isinstance(value, (int, float)):
            refuse(f"{name}={value}: legal is a string, in quotes")
        refuse(
            f"{name}={value} has no legal range in its comment. Write one there in brackets, such "
            "as [1 to 100]; a string needs quotes"
        )
    if isinstance(allowed, list):
        if not any(value == a and type(value) is type(a) for a in allowed):
            words = ", ".join(f'"{a}"' if isinstance(a, str) else str(a) for a in allowed)
            refuse(f"{name}={value}: legal values are {words}")
        return value
    low, high = allowed
    whole = isinstance(low, int) and isinstance(high, int)
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # nan compares false with everything
        kind = "a whole number" if whole else "a number"
        refuse(f"{name}={value}: legal is {kind} from {low} to {high}")
    return value if whole else float(value)


def legal_string(name, value):
    """Return a string, with the home folder for ~ if it names a folder. Raises UserError."""
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        refuse(f"{name}={value}: legal is a string that can be the name of a file")
    if any(unicodedata.category(letter) == "Cc" for letter in value):  # a terminal would obey them
        refuse(f"{name}={value}: legal is a string without control characters")
    is_folder = name.endswith("_DIR") or name == "OUT"
    path = os.path.expanduser(value) if is_folder else value
    if is_folder and path.startswith("~"):
        refuse(f"{name}={value}: there is no such home folder; ./{value} is a folder of that name")
    return path
