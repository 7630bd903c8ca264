#!/usr/bin/env python3
"""Writes the code blocks of a document as programs, so that tests compile and run what readers paste.

Usage: extract_snippets.py DOCUMENT OUTPUT_FOLDER [--language LANGUAGE...]   prints the paths written
       extract_snippets.py DOCUMENT OUTPUT_FOLDER --guides                   writes the files of the guides

A line above a block says what it is for: `<!-- run: name -->`, `<!-- guide: folder/file -->`, or both with a comma between.
A block of C++, C, Python or PHP without `run` is an error, so that no snippet goes untested; it becomes name.cc and so on.
A block of C++ without main() is wrapped: its includes stay on top, the rest becomes the body of main(). Blocks with `guide`
are files that a reader makes, and the commands that he types (commands.sh), in a folder for each guide; they are written as
they stand. A file is rewritten only when its text changes.
"""

import argparse
import pathlib
import re

MARKER = r"(?:^<!-- (?:run: (?P<name>\w+))?(?:, )?(?:guide: (?P<guide>[\w./-]+))? -->\n+)?"
FENCE = re.compile(MARKER + r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
SUFFIX = {"cpp": ".cc", "c": ".c", "python": ".py", "php": ".php"}


def cpp_program(name, code):
    """The text of a whole program around one block."""
    head = f"// The snippet '{name}', taken from the documentation.\n"
    if re.search(r"\bmain\(", code):
        return head + code
    lines = code.splitlines()
    includes = [line for line in lines if line.startswith(("#include", "using namespace"))]
    body = ["  " + line if line else "" for line in lines if line not in includes]
    return head + "\n".join(includes) + "\n\nint main() {\n" + "\n".join(body).strip("\n") + "\n  return 0;\n}\n"


def programs(document, languages):
    """Yields (file name, text) of each program in these languages; raises ValueError for a block that is not run."""
    seen = set()
    for block in FENCE.finditer(document):
        name, language, code = block["name"], block["language"], block["code"]
        if language not in SUFFIX:
            continue
        if not name:
            raise ValueError("a code block without <!-- run: name -->: " + code.splitlines()[0])
        if name in seen:
            raise ValueError(f"two code blocks are named {name}")
        seen.add(name)
        if language in languages:
            yield name + SUFFIX[language], cpp_program(name, code) if language == "cpp" else code


def guides(document):
    """Yields (path, text) of each file of the guides."""
    for block in FENCE.finditer(document):
        if block["guide"]:
            yield block["guide"], block["code"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("document", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--language", nargs="+", default=["cpp", "c"], choices=SUFFIX)
    parser.add_argument("--guides", action="store_true")
    arguments = parser.parse_args()
    document = arguments.document.read_text(encoding="utf-8")
    for name, text in guides(document) if arguments.guides else programs(document, arguments.language):
        path = arguments.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
