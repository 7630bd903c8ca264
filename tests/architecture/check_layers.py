#!/usr/bin/env python3
"""Checks the laws of the house over a source tree and prints one line for each breach; exit code 1 if there is any.

Usage: check_layers.py [ROOT]
"""

import pathlib
import re
import subprocess
import sys

import laws

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.M)
CXX = {".h", ".cc", ".c"}
HASH = {".py", ".cmake", ".sh", ".php"}
TOP = ("include", "src", "tests", "bench", "tools", "examples", "bindings", "scripts", "cmake", ".ci")


def source_files(root):
    """Files under version control (all files where there is none), below the folders that hold code."""
    try:
        listed = subprocess.run(["git", "-c", "safe.directory=*", "-C", str(root), "ls-files", "-co", "--exclude-standard", "--deduplicate"],
                                check=True, capture_output=True, text=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        listed = [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]
    return sorted(p for p in listed if p.split("/")[0] in TOP and (root / p).is_file())


def strip(text):
    """The text without comments and literals, line for line."""
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\'', re.S)
    return pattern.sub(lambda m: ("" if m.group().startswith("/") else '""') + "\n" * m.group().count("\n"), text)


def functions(text):
    """Yields (line, lines, name) of each outermost function body. A heuristic over braces; macros with a body count."""
    code = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: "\n" * m.group().count("\n"), strip(text), flags=re.M)
    stack, head_start, inside = [], 0, None
    for match in re.finditer(r"[{};]", code):
        at, mark = match.start(), match.group()
        if mark == "{":
            head = code[head_start:at].strip()
            name = re.search(r"([~\w:]+(?:\s*operator\s*\S+)?)\s*\(", head)
            is_type = re.match(r"(template\s*<.*>\s*)?(inline\s+)?(namespace|class|struct|union|enum|extern)\b", head, re.S)
            if inside is None and name and not is_type and not re.search(r"=\s*$", head):
                inside = len(stack)
                first = code.count("\n", 0, at - len(code[head_start:at].lstrip())) + 1
                described = (first, name.group(1))
            stack.append(at)
        elif mark == "}":
            if stack:
                stack.pop()
            if inside is not None and len(stack) == inside:
                last = code.count("\n", 0, at) + 1
                yield described[0], last - described[0] + 1, described[1]
                inside = None
        if inside is None:
            head_start = at + 1


class Checker:
    """Collects breaches as "path:line: sentence"."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.breaches = []

    def report(self, path, line, sentence):
        self.breaches.append(f"{path}:{line}: {sentence}")

    def run(self):
        for path in source_files(self.root):
            suffix = pathlib.PurePath(path).suffix
            if suffix not in CXX | HASH and not path.startswith(("scripts/", ".ci/")):
                continue
            text = (self.root / path).read_text(encoding="utf-8", errors="replace")
            self.check_shape(path, text, suffix)
            if suffix in CXX:
                self.check_includes(path, text)
                for line, length, name in functions(text):
                    if length > laws.MAX_FUNCTION_LINES:
                        self.report(path, line, f"{name} has {length} lines; {laws.MAX_FUNCTION_LINES} at most")
        self.check_ladder()
        return self.breaches

    def check_shape(self, path, text, suffix):
        lines = text.splitlines()
        if len(lines) > laws.MAX_FILE_LINES:
            self.report(path, 1, f"the file has {len(lines)} lines; {laws.MAX_FILE_LINES} at most")
        if path.startswith("scripts/") and suffix == "" and not text.startswith("#"):
            return
        skipped = 0
        while skipped < len(lines) and re.match(r"#!|<\?php|/\*\*?$", lines[skipped]):
            skipped += 1
        first = lines[skipped] if skipped < len(lines) else ""
        body = re.sub(r'^\s*(///?|/\*\*?|\*|#|r?""")\s*', "", first)
        paragraph = body + " ".join(lines[skipped + 1:skipped + 6])
        if body == first and skipped == 0 or len(body.split()) < 3 or not re.search(r"[.:]", paragraph):
            self.report(path, skipped + 1, "the first line is not a sentence that says what the file is for")

    def check_includes(self, path, text):
        for match in INCLUDE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            quoted, name = match.group(1) == '"', match.group(2)
            if path.startswith("src/"):
                self.check_room(path, line, name, quoted)
            elif path.startswith("include/"):
                self.check_public(path, line, name, quoted)
            else:
                self.check_outside(path, line, name)

    def owner(self, name):
        """The room of a public header."""
        header = self.root / "include" / name
        layer = re.search(r"^[ /*]*Layer: (\w+)", header.read_text(encoding="utf-8"), re.M) if header.is_file() else None
        return layer.group(1) if layer else "core"

    def may(self, room, other):
        return other == room or other in laws.ROOMS.get(room, ())

    def check_room(self, path, line, name, quoted):
        parts = path.split("/")
        if len(parts) < 3:
            return self.report(path, line, "a source of the library must lie in a room")
        room = parts[1]
        if room not in laws.ROOMS:
            return self.report(path, line, f"{room}/ is no room of the house (tests/architecture/laws.py)")
        for pattern, homes, what in laws.FOREIGN:
            if re.match(pattern, name):
                if room not in homes:
                    self.report(path, line, f"{room}/ may not include {name}: {what} only in {', '.join(homes)}")
                return None
        if name.startswith("pagedkv/"):
            owner = self.owner(name)
            if not self.may(room, owner) and owner not in laws.PUBLIC_HEADERS.get(room, ()):
                self.report(path, line, f"{room}/ may not include {name} ({owner})")
        elif quoted:
            other = name.split("/")[0] if "/" in name else room
            if ".." in name or "/" not in name:
                self.report(path, line, f'write "{room}/..." from src/, not "{name}"')
            elif not self.may(room, other):
                self.report(path, line, f"{room}/ may not include {name} ({other})")
        return None

    def check_public(self, path, line, name, quoted):
        if name.startswith("pagedkv/"):
            room, owner = self.owner(path[len("include/"):]), self.owner(name)
            umbrella = path == "include/pagedkv/pagedkv.h" or "/c/" in path
            if not umbrella and not self.may(room, owner):
                self.report(path, line, f"a header of {room} may not include {name} ({owner})")
        elif quoted or not self.is_standard(name, path):
            self.report(path, line, f"a public header may not include {name}: public headers and the standard library only")

    def is_standard(self, name, path):
        c_names = r"(assert|errno|float|inttypes|limits|math|stdalign|stdarg|stdbool|stddef|stdint|stdio|stdlib|string)\.h"
        return re.fullmatch(c_names, name) is not None if "/c/" in path else re.fullmatch(r"[a-z_]+", name) is not None

    def check_outside(self, path, line, name):
        if path.startswith(laws.WHITE_BOX):
            return
        local = (self.root / path).parent / name
        if "/src/" in name or name.startswith("src/") or \
                name.split("/")[0] in laws.ROOMS and "/" in name and (self.root / "src" / name).is_file() and not local.is_file():
            self.report(path, line, f"{path.split('/')[0]}/ may not include {name}: public headers only")

    def check_ladder(self):
        """src/README.md says one sentence about each room, and only about rooms that exist."""
        ladder = self.root / "src" / "README.md"
        if not ladder.is_file():
            return self.report("src/README.md", 1, "is missing: one sentence a room")
        told = re.findall(r"^\| `(\w+)/` \| \S", ladder.read_text(encoding="utf-8"), re.M)
        there = {p.parent.name for pattern in ("*/*.cc", "*/*.h") for p in (self.root / "src").glob(pattern)}
        for room in sorted(there - set(told)):
            self.report("src/README.md", 1, f"says nothing about {room}/")
        for room in sorted({r for r in told if told.count(r) > 1}):
            self.report("src/README.md", 1, f"tells of {room}/ more than once")
        return None


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2])
    breaches = Checker(root).run()
    print("\n".join(breaches) if breaches else "every law holds")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
