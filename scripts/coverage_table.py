"""Sums llvm-cov's lcov tracefile up by room, and lists the lines that no test reaches.

coverage_table.py TRACEFILE ROOT MISSED: prints the rooms and the files of which the most lines are missed; writes the
missed lines of every file, with their text, to MISSED.
"""

import collections
import os
import sys


def read(tracefile, root):
    """{path below root: {line: times run}}"""
    files, lines = {}, {}
    with open(tracefile, encoding="utf-8") as records:
        for record in records:
            key, _, value = record.strip().partition(":")
            if key == "SF":
                path = os.path.relpath(os.path.realpath(value), os.path.realpath(root))
                lines = {} if path.startswith("..") else files.setdefault(path, {})
            elif key == "DA":
                number, count = value.split(",")[:2]
                lines[int(number)] = lines.get(int(number), 0) + int(count)
    return files


def room_of(path):
    """src/pool of src/pool/page_pool.cc; include of include/pagedkv/sequence.h."""
    parts = path.split("/")
    return parts[0] if parts[0] == "include" else "/".join(parts[:2])


def write_missed(files, root, target):
    """One paragraph a file: its missed lines as an editor shows them."""
    with open(target, "w", encoding="utf-8") as out:
        for path, lines in sorted(files.items()):
            missed = [number for number, count in sorted(lines.items()) if count == 0]
            if not missed:
                continue
            with open(os.path.join(root, path), encoding="utf-8") as file:
                text = file.read().splitlines()
            out.write(f"{path}: {len(missed)} of {len(lines)}\n")
            out.writelines(f"{number:6}  {text[number - 1]}\n" for number in missed)
            out.write("\n")


def main():
    tracefile, root, target = sys.argv[1:]
    files = read(tracefile, root)
    write_missed(files, root, target)
    rooms = collections.defaultdict(lambda: [0, 0])
    missed = []
    for path, lines in files.items():
        covered = sum(count > 0 for count in lines.values())
        for room in (room_of(path), "all of src" if path.startswith("src/") else None):
            if room:
                rooms[room][0] += covered
                rooms[room][1] += len(lines)
        missed.append((len(lines) - covered, len(lines), path))
    for room, (covered, count) in sorted(rooms.items()):
        print(f"{room:28} {covered:6} of {count:6} lines  {100 * covered / max(count, 1):5.1f} %")
    print("\nlines that no test reaches, by file:")
    for lines, count, path in sorted(missed, reverse=True)[:30]:
        if lines:
            print(f"{lines:6} of {count:6}  {path}")
    covered, count = rooms["all of src"]
    print(f"{100 * covered / max(count, 1):.1f} % of the lines of src")


main()
