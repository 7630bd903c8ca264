"""Sums an llvm-cov summary up by room, and names the files of which tests reach the fewest lines."""

import collections
import json
import os
import sys


def room_of(path):
    """src/pool of src/pool/page_pool.cc; include of include/pagedkv/sequence.h."""
    parts = path.split("/")
    return parts[0] if parts[0] == "include" else "/".join(parts[:2])


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        files = json.load(file)["data"][0]["files"]
    rooms = collections.defaultdict(lambda: [0, 0])
    missed = []
    for entry in files:
        path = os.path.relpath(os.path.realpath(entry["filename"]), os.path.realpath(sys.argv[2]))
        if path.startswith(".."):
            continue
        lines = entry["summary"]["lines"]
        for room in (room_of(path), "all of src" if path.startswith("src/") else None):
            if room:
                rooms[room][0] += lines["covered"]
                rooms[room][1] += lines["count"]
        missed.append((lines["count"] - lines["covered"], lines["count"], path))
    for room, (covered, count) in sorted(rooms.items()):
        print(f"{room:28} {covered:6} of {count:6} lines  {100 * covered / max(count, 1):5.1f} %")
    print("\nlines that no test reaches, by file:")
    for lines, count, path in sorted(missed, reverse=True)[:20]:
        if lines:
            print(f"{lines:6} of {count:6}  {path}")
    covered, count = rooms["all of src"]
    print(f"{100 * covered / max(count, 1):.1f} % of the lines of src")


main()
