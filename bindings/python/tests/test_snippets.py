"""The Python snippets of the documentation run as they are pasted."""

import pathlib
import re

import pytest

DOCUMENT = pathlib.Path(__file__).parents[3] / "docs" / "EMBEDDING.md"
BLOCKS = re.findall(r"(?:<!-- run: (\w+) -->\n)?^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("name, code", BLOCKS, ids=[name for name, _ in BLOCKS])
def test_snippet_runs(name, code):
    assert name, "a block without <!-- run: name -->"
    exec(compile(code, f"{DOCUMENT.name}:{name}", "exec"), {})


def test_there_are_snippets():
    assert len(BLOCKS) >= 2
