"""The Python snippets of the documentation run as they are pasted."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "EMBEDDING.md"
SPEC = importlib.util.spec_from_file_location("extract_snippets", ROOT / "tests" / "api" / "extract_snippets.py")
EXTRACT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(EXTRACT)
PROGRAMS = dict(EXTRACT.programs(DOCUMENT.read_text(encoding="utf-8"), ["python"]))


@pytest.mark.parametrize("name", PROGRAMS)
def test_snippet_runs(name):
    exec(compile(PROGRAMS[name], f"{DOCUMENT.name}:{name}", "exec"), {})


def test_there_are_snippets():
    assert len(PROGRAMS) >= 2
