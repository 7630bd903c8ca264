"""Times attention of pagedkv beside other CPU kernels: same values, same shapes, in turn within one process.

Before anything is timed, each engine's output is compared with attention in f64; an engine that is off ends the run with
exit code 1. Every engine keeps its keys and values in the layout that suits it, in as much memory as the others, and its
calls take turns over copies, so that caches hold none of it. A timed call follows untimed ones of the same engine, for 20 ms
or more, as in a server that computes layer after layer: its threads are awake and nobody else's still spin. A peer that is
not installed has no column; that is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import sys
import time
from collections import Counter

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's own memory in huge pages, as NumPy's is, with all data

# Root mean square of the difference, of that of the result. f16: ggml sums values in f16 and errs by 1e-2.
ALLOWED_ERROR = {"f32": 1e-4, "f16": 2e-2, "bf16": 2e-2}

# Of calls before the one that is timed: OpenMP's threads (PyTorch, vLLM, ggml) spin for some 10 ms after their last one.
AWAKE_SECONDS = 0.02


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of every engine")
    parser.add_argument("--seconds", type=float, default=5, help="time to measure each shape for (default: 5)")
    parser.add_argument("--only", default="", help="shapes whose text contains this, as in 'decode, bf16'")
    parser.add_argument("--json", metavar="FILE", help="write the samples there")
    parser.add_argument("--list", action="store_true", help="list shapes and engines, and leave")
    options = parser.parse_args()
    if options.threads < 1:
        parser.error("--threads: at least one")
    return options


class Errors:
    """Of an engine's output against attention in f64, over the rows that are checked."""

    def __init__(self, output, problem):
        import numpy as np
        expected = problem.expected
        difference = np.stack([output[b, row] for b, row in problem.rows_to_check()]) - expected
        self.rms = float(np.sqrt(np.square(difference).sum() / np.square(expected).sum()))  # of that of the result
        self.largest = float(np.abs(difference).max() / np.abs(expected).max())  # of the largest element


def make_engines(problem, threads: int, available: list, notes: Counter[str]) -> list:
    """The engines that compute this shape, checked; what is left out is noted. Exits if one is wrong."""
    made = []
    for engine in available:
        try:
            instance = engine(problem, threads)
            instance.run(0)
        except Exception as reason:  # no kernel, a library that cannot be loaded, a failure of its own: said, not fatal
            if engine.name == "pagedkv":
                raise
            notes[f"{engine.name}: {(str(reason).strip() or repr(reason)).splitlines()[-1]}"] += 1
            continue
        instance.errors = Errors(instance.output(problem.shape), problem)
        if not instance.errors.rms <= ALLOWED_ERROR[problem.shape.dtype]:
            sys.exit(f"versus: {engine.name} differs from f64 attention by {instance.errors.rms:.2g} at {problem.shape}")
        made.append(instance)
    return made


def measure(engines: list, copies: int, seconds: float) -> list[list[float]]:
    """Seconds of single calls, engine by engine in turn."""
    samples: list[list[float]] = [[] for _ in engines]
    end = time.monotonic() + seconds
    turn = 0
    while len(samples[0]) < 5 or (time.monotonic() < end and len(samples[0]) < 300):
        for i, engine in enumerate(engines):
            time.sleep(0.001)
            awake = time.perf_counter() + AWAKE_SECONDS
            for call in itertools.count(turn):
                begin = time.perf_counter()
                engine.run(call % copies)
                if begin >= awake and call > turn:
                    break
            samples[i].append(time.perf_counter() - begin)
        turn += 2
    return samples


def rate(shape, seconds: float) -> str:
    return f"{shape.kv_bytes / seconds * 1e-9:.1f} GB/s" if shape.decode else f"{shape.flops / seconds * 1e-9:.0f} GFLOP/s"


def missing(*modules: str) -> list[str]:
    return [module for module in modules if importlib.util.find_spec(module) is None]


def print_head(engines: list) -> None:
    print("| shape | " + " | ".join(engine.name for engine in engines) + " |")
    print("|---|" + "---|" * len(engines))


def main() -> int:
    options = parse()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:options.threads])
    if absent := missing("numpy", "ml_dtypes", "pagedkv"):
        sys.exit(f"versus: {absent[0]} is not installed; run bench/versus/run")
    from engines import ENGINES, NOT_COMPARED, rounded
    from shapes import SHAPES, Problem
    shapes = [shape for shape in SHAPES if options.only in str(shape)]
    left_out = {engine: missing(*engine.modules) for engine in ENGINES}
    available = [engine for engine, absent in left_out.items() if not absent]
    for line in [*(f"{engine.name}: {' and '.join(absent)} not installed; bench/versus/run says why"
                   for engine, absent in left_out.items() if absent), *NOT_COMPARED]:
        print(f"Left out: {line}")
    if options.list or not shapes:
        print("\n".join([str(shape) for shape in shapes] + [engine.name for engine in available]))
        return 0 if shapes else 2

    print(f"\n{options.threads} threads; median of calls in turn; in brackets the time of a call, in times of pagedkv's\n")
    print_head(available)
    notes: Counter[str] = Counter()
    ahead, report, errors = [], [], []
    for shape in shapes:
        problem = Problem(shape, rounded)
        engines = make_engines(problem, options.threads, available, notes)
        medians = {}
        for engine, samples in zip(engines, measure(engines, shape.copies, options.seconds)):
            medians[engine.name] = statistics.median(samples)
            report.append({"shape": str(shape), "engine": engine.name, "ms": [1e3 * s for s in samples],
                           "rms_error": engine.errors.rms, "largest_error": engine.errors.largest})
        ours = medians["pagedkv"]
        cells = []
        for engine in available:
            seconds = medians.get(engine.name)
            ratio = "" if engine.name == "pagedkv" or seconds is None else f" ({seconds / ours:.1f}x)"
            cells.append("-" if seconds is None else rate(shape, seconds) + ratio)
            if seconds is not None and seconds < ours:
                ahead.append(f"{engine.name} is ahead at {shape}")
        print(f"| {shape} | " + " | ".join(cells) + " |", flush=True)
        found = {engine.name: f"{engine.errors.rms:.1e}, {engine.errors.largest:.1e}" for engine in engines}
        errors.append(f"| {shape} | " + " | ".join(found.get(engine.name, "-") for engine in available) + " |")
        del engines
    print("\nDifference from attention in f64: root mean square, of that of the result; largest, of the largest element\n")
    print_head(available)
    print("\n".join(errors) + "\n")
    unable = [f"{note} ({count} of {len(shapes)} shapes)" for note, count in sorted(notes.items())]
    peers_ran = any(entry["engine"] != "pagedkv" for entry in report)
    nobody_ahead = "No peer is ahead in any row." if peers_ran else "No peer has run: there is nothing to compare with."
    for line in [*unable, *(ahead or [nobody_ahead])]:
        print(line)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
