#!/usr/bin/env python3
"""Puts every way of giving out KV memory through the same traces, and draws what docs/FRAGMENTATION.md shows.

    bench/fragmentation/run.py --tool build/release/bin/pagedkv --data ../shared/data/traces --out build/fragmentation
    bench/fragmentation/run.py ... --figures docs/figures               also redraws the figures of the documents
    bench/fragmentation/run.py ... --figures docs/figures --draw-only   from the JSON of an earlier run in --out

Writes one JSON and one HTML report a trace, hit rates of the prefix cache over capacity, and Belady's bound for them.
Needs python3-matplotlib; libjemalloc2 and libmimalloc2.0 are measured if they are installed.
"""

import argparse
import heapq
import json
import lzma
import pathlib
import subprocess
import sys

AZURE = "AzureLLMInferenceTrace_conv.csv.xz"
MOONCAKE = "mooncake_conversation_trace.jsonl.xz"
AGENTIC = "agentic64_public.jsonl.xz"
# name: trace, format, capacity in tokens (small enough that memory is what limits the server), requests
SCENARIOS = {
    "azure": (AZURE, "azure", 200_000, 6000),
    "mooncake": (MOONCAKE, "mooncake", 1_000_000, 1000),
}
HIT_CAPACITIES = [250_000, 500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000, 32_000_000, 110_000_000]
BLUE, ORANGE, RED, GREY, GREEN = "#2563c9", "#f0a33a", "#d0453f", "#aab3c5", "#2f9e63"


def run_tool(tool, *arguments):
    command = [str(tool), "replay", *map(str, arguments), "--json", "-"]
    print("+", " ".join(command), file=sys.stderr)
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare_policies(args):
    reports = {}
    for name, (trace, kind, capacity, requests) in SCENARIOS.items():
        reports[name] = run_tool(args.tool, "--trace", args.data / trace, "--format", kind, "--policy", "all",
                                 "--arrivals", "closed", "--capacity-tokens", capacity, "--max-requests", requests,
                                 "--html", args.out / f"{name}.html")["policies"]
        (args.out / f"{name}.json").write_text(json.dumps(reports[name], indent=1))
    return reports


def mooncake_blocks(path):
    """The requests of the trace as lists of (block id, tokens in it)."""
    with lzma.open(path, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            length, ids = row["input_length"], row["hash_ids"]
            yield [(block, min(512, length - 512 * i)) for i, block in enumerate(ids)]


def belady_hit_rate(requests, capacity_tokens):
    """Most prompt tokens that any policy could find with this memory, prefixes or not.

    Belady's rule over blocks: evict the one whose next use is farthest, and do not keep one that is farther still.
    A real cache also holds running sequences and outputs, and must find prefixes without gaps: it can only do worse.
    """
    references = [reference for request in requests for reference in request]
    never = len(references)
    next_use, last = [never] * len(references), {}
    for i in range(len(references) - 1, -1, -1):
        next_use[i] = last.get(references[i][0], never)
        last[references[i][0]] = i
    held, heap, used, hits = {}, [], 0, 0
    for i, (block, tokens) in enumerate(references):
        if block in held:
            hits += tokens
        else:
            used += tokens
        held[block] = (next_use[i], tokens)
        heapq.heappush(heap, (-next_use[i], block))
        while used > capacity_tokens:
            use, victim = heapq.heappop(heap)
            if victim in held and held[victim][0] == -use:
                used -= held.pop(victim)[1]
    return hits / sum(tokens for _, tokens in references)


def hit_rates(args):
    requests = list(mooncake_blocks(args.data / MOONCAKE))
    rates = {"capacity_tokens": HIT_CAPACITIES, "belady": [belady_hit_rate(requests, c) for c in HIT_CAPACITIES]}
    for eviction in ("lru", "s3fifo", "arc"):
        rates[eviction] = [
            run_tool(args.tool, "--trace", args.data / MOONCAKE, "--format", "mooncake", "--prefix-cache", "--eviction",
                     eviction, "--capacity-tokens", c)["prefix_hit_rate"] for c in HIT_CAPACITIES
        ]
    (args.out / "hit_rates.json").write_text(json.dumps(rates, indent=1))
    return rates


def read_earlier(args):
    read = lambda name: json.loads((args.out / f"{name}.json").read_text())
    return {name: read(name) for name in SCENARIOS}, read("hit_rates")


def label(run):
    return f"paged, page {run['page_size']}" if run["policy"] == "paged" else run["policy"]


def draw_policies(plt, name, runs, folder):
    shown = [r for r in runs if r["policy"] != "paged" or r["page_size"] == 16]
    shown.sort(key=lambda r: r["mean_concurrent_sequences"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.9), sharey=True)
    names = [label(r) for r in shown]
    left.barh(names, [r["mean_concurrent_sequences"] for r in shown],
              color=[BLUE if r["policy"] == "paged" else GREY for r in shown])
    left.set_xlabel("sequences at once, mean")
    live = [100 * r["utilization"] for r in shown]
    empty = [100 * r["utilization"] * r["tail_waste"] / (1 - r["tail_waste"]) for r in shown]
    lost = [100 * (r["external_fragmentation"] or 0) for r in shown]  # an allocator does not say
    right.barh(names, live, color=BLUE, label="live tokens")
    right.barh(names, empty, left=live, color=ORANGE, label="reserved without a token")
    right.barh(names, lost, left=[a + b for a, b in zip(live, empty)], color=RED, label="free, but unusable")
    right.set_xlabel("percent of the capacity")
    right.set_xlim(0, 100)
    right.legend(fontsize=8, ncol=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    save(plt, figure, folder / f"fragmentation-{name}.svg")


def draw_page_sizes(plt, reports, folder):
    figure, axes = plt.subplots(figsize=(6.2, 3.4))
    for (name, runs), colour in zip(reports.items(), (BLUE, GREEN)):
        pages = sorted((r["page_size"], 100 * r["tail_waste"]) for r in runs if r["policy"] == "paged")
        axes.plot([p for p, _ in pages], [w for _, w in pages], "o-", color=colour, label=name)
    axes.axhline(4, color=GREY, linewidth=1, linestyle="--")
    axes.text(1, 4.2, "4 %", color="#64708a", fontsize=8)
    axes.set_xscale("log", base=2)
    label_ticks(axes, [p for p, _ in pages])
    axes.set_xlabel("page size, tokens")
    axes.set_ylabel("waste, percent of reserved slots")
    axes.legend()
    save(plt, figure, folder / "fragmentation-page-size.svg")


def label_ticks(axes, values):
    axes.set_xticks(values, [f"{v:g}" for v in values])
    axes.minorticks_off()


def draw_hit_rates(plt, rates, folder):
    figure, axes = plt.subplots(figsize=(6.2, 3.4))
    capacity = [c / 1e6 for c in rates["capacity_tokens"]]
    shown = (("belady", GREY, "Belady's bound"), ("arc", GREEN, "ARC"), ("s3fifo", ORANGE, "S3-FIFO"),
             ("lru", BLUE, "LRU"))
    for name, colour, text in shown:
        axes.plot(capacity, [100 * r for r in rates[name]], "o-", color=colour, label=text)
    axes.set_xscale("log")
    label_ticks(axes, capacity)
    axes.set_ylim(0, 40)
    axes.set_xlabel("capacity, million tokens")
    axes.set_ylabel("prompt tokens found, percent")
    axes.legend()
    save(plt, figure, folder / "prefix-hit-rate.svg")


def save(plt, figure, path):
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", type=pathlib.Path, default="build/release/bin/pagedkv")
    parser.add_argument("--data", type=pathlib.Path, default="../shared/data/traces", help="folder of the traces")
    parser.add_argument("--out", type=pathlib.Path, default="build/fragmentation")
    parser.add_argument("--figures", type=pathlib.Path, help="folder for the figures; default: --out")
    parser.add_argument("--draw-only", action="store_true", help="draw what an earlier run left in --out")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.figures or args.out
    folder.mkdir(parents=True, exist_ok=True)

    reports, rates = read_earlier(args) if args.draw_only else (compare_policies(args), hit_rates(args))
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pagedkv"
    import matplotlib.pyplot as plt
    for name, runs in reports.items():
        draw_policies(plt, name, runs, folder)
    draw_page_sizes(plt, reports, folder)
    draw_hit_rates(plt, rates, folder)


if __name__ == "__main__":
    main()
