"""Count code the way the README does: lines that hold code, without blank lines, comments and docstrings.

    python -m tools.count
"""

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minltx"
CHAPTERS = ("patchify", "flow", "layers", "vae", "losses",
            "rope", "dit", "sampler", "objectives")     # in reading order
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
            tokenize.ENDMARKER, tokenize.ENCODING}


def code_lines(path):
    """The number of lines of a Python file that hold code."""
    text, docstrings, lines = Path(path).read_text(encoding="utf-8"), set(), set()
    for node in ast.walk(ast.parse(text)):
        may_have_one = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if may_have_one and ast.get_docstring(node) is not None:
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def chapter_lines():
    """Chapter -> code lines, in reading order."""
    return {name: code_lines(PACKAGE / f"{name}.py") for name in CHAPTERS}


def room_lines():
    """Room -> code lines of everything but the chapters: a folder, or a single file."""
    files = [*sorted(PACKAGE.rglob("*.py")), *sorted(ROOT.glob("tools/*.py")),
             ROOT / "train_tiny.py", ROOT / "sample.py"]
    rooms = {}
    for path in files:
        name = path.relative_to(ROOT)
        if path.parent == PACKAGE and path.stem in CHAPTERS:
            continue
        room = str(name if path.parent in (ROOT, PACKAGE) else name.parent)
        rooms[room] = rooms.get(room, 0) + code_lines(path)
    return rooms


def show(counts):
    for name, count in [*counts.items(), ("together", sum(counts.values()))]:
        print(f"{name:22} {count:5,}")


if __name__ == "__main__":
    show(chapter_lines())
    print()
    show(room_lines())
