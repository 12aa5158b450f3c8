"""Count code the way the README does: lines that hold code, without blank lines, comments and docstrings.

    python -m minltx.workshop.count
"""

import ast
import io
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CHAPTERS = ("data", "patchify", "flow", "layers", "vae",
            "losses", "rope", "text", "dit", "sampler")  # reading order
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
            tokenize.ENDMARKER, tokenize.ENCODING}


def code_lines(path):
    """The number of lines of a Python file that hold code."""
    text, docstrings, lines = Path(path).read_text(), set(), set()
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


if __name__ == "__main__":
    counts = chapter_lines()
    for name, count in counts.items():
        print(f"{name:10} {count:4}")
    print(f"{'together':10} {sum(counts.values()):4}")
