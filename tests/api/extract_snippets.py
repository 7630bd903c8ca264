#!/usr/bin/env python3
"""Writes the code blocks of a document as programs, so that tests compile and run what readers paste.

Usage: extract_snippets.py DOCUMENT OUTPUT_FOLDER

A block of C++ or C (```cpp, ```c) stands under a line `<!-- run: name -->` and becomes name.cc or name.c; without a
marker it is an error, so that no snippet goes untested. A block without main() is wrapped: its includes stay on top,
the rest becomes the body of main(). A file is rewritten only when its text changes. Prints the paths written.
"""

import pathlib
import re
import sys

FENCE = re.compile(r"(?:<!-- run: (\w+) -->\n+)?^```(cpp|c)\n(.*?)^```$", re.M | re.S)
SUFFIX = {"cpp": ".cc", "c": ".c"}


def program(name, code):
    """The text of a whole program around one block."""
    head = f"// The snippet '{name}', taken from the documentation.\n"
    if re.search(r"\bmain\(", code):
        return head + code
    lines = code.splitlines()
    includes = [line for line in lines if line.startswith(("#include", "using namespace"))]
    body = ["  " + line if line else "" for line in lines if line not in includes]
    return head + "\n".join(includes) + "\n\nint main() {\n" + "\n".join(body).strip("\n") + "\n  return 0;\n}\n"


def extract(document):
    """Yields (name, suffix, program) of each block; raises ValueError for a block without a marker."""
    seen = set()
    for name, language, code in FENCE.findall(document):
        if not name:
            raise ValueError("a code block without <!-- run: name -->: " + code.splitlines()[0])
        if name in seen:
            raise ValueError(f"two code blocks are named {name}")
        seen.add(name)
        yield name, SUFFIX[language], program(name, code)


def main():
    document, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, suffix, text in extract(document.read_text(encoding="utf-8")):
        path = folder / (name + suffix)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
