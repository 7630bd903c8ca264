#!/usr/bin/env python3
"""Paged admission against reservation at maximum length: the same server, memory, model and requests.

Usage: compare.py BIN_FOLDER [--plot out.png] [--json out.json] [--server "options"] [--load "options"]
       compare.py --from out.json [--plot out.png]
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import tempfile

# Who reserves everything at admission needs no pages in hand for growth.
POLICIES = {"paged": [], "reserved": ["--reserve-max-length", "--watermark-pages", "0"]}
ROWS = [
    ("requests complete", lambda r: f"{r['complete']:,}"),
    ("lost", lambda r: f"{r['lost']:,}"),
    ("seconds", lambda r: f"{r['seconds']:.1f}"),
    ("output tokens/s", lambda r: f"{r['output_tokens_per_second']:,.0f}"),
    ("sequences at once, mean", lambda r: f"{r['server']['running_mean']:.0f}"),
    ("sequences at once, most", lambda r: f"{r['server']['running_peak']:.0f}"),
    ("pages used, mean", lambda r: f"{r['server']['used_percent_mean']:.0f} %"),
    ("preemptions", lambda r: f"{r['server']['preemptions']:,.0f}"),
    ("time to first token, p50", lambda r: f"{r['time_to_first_token_ms']['p50']:,.0f} ms"),
    ("time to first token, p99", lambda r: f"{r['time_to_first_token_ms']['p99']:,.0f} ms"),
    ("time per output token, p50", lambda r: f"{r['time_per_output_token_ms']['p50']:,.1f} ms"),
    ("time per output token, p99", lambda r: f"{r['time_per_output_token_ms']['p99']:,.1f} ms"),
    ("whole request, p99", lambda r: f"{r['request_ms']['p99']:,.0f} ms"),
    ("pages in use afterwards", lambda r: f"{r['server']['pages_used_after']:.0f}"),
]


def measure(folder, policy, server_options, load_options):
    command = [os.path.join(folder, "pagedkv-server"), "--port", "0", *POLICIES[policy], *shlex.split(server_options)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://[^/]+", server.stdout.readline()).group(0)
        with tempfile.TemporaryDirectory() as scratch:
            report = os.path.join(scratch, "report.json")
            load = [os.path.join(folder, "pagedkv-load"), "--url", url, "--json", report, *shlex.split(load_options)]
            print(f"--- {policy}", flush=True)
            if subprocess.run(load).returncode != 0:
                raise SystemExit(f"{policy}: the load did not end clean")
            with open(report) as file:
                return json.load(file)
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=120)


COLORS = {"paged": "#3b82f6", "reserved": "#e08a1e"}


def plot_timelines(results, running, used):
    for policy, color in COLORS.items():
        server = results[policy]["server"]
        seconds = [sample["seconds"] for sample in server["timeline"]]
        running.plot(seconds, [sample["running"] for sample in server["timeline"]], color=color, label=policy)
        share = [100 * sample["used"] / server["pages"] for sample in server["timeline"]]
        used.plot(seconds, share, color=color, label=policy)
    running.set_title("sequences served at once", fontsize=10)
    used.set_title("pages that hold tokens, %", fontsize=10)
    used.set_ylim(0, 105)
    for axes in (running, used):
        axes.set_xlabel("seconds")
        axes.legend(frameon=False)


def plot_latencies(results, axes, key, title, unit, scale):
    ranks = ("p50", "p90", "p99")
    for offset, (policy, color) in zip((-0.2, 0.2), COLORS.items()):
        values = [results[policy][key][rank] / scale for rank in ranks]
        bars = axes.bar([i + offset for i in range(len(ranks))], values, 0.38, color=color, label=policy)
        axes.bar_label(bars, labels=[f"{value:.3g}" for value in values], fontsize=8)
    axes.set_xticks(range(len(ranks)), ranks)
    axes.set_title(f"{title}, {unit}", fontsize=10)
    axes.legend(frameon=False)


def plot(results, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4))
    plot_timelines(results, *axes[0])
    plot_latencies(results, axes[1][0], "time_to_first_token_ms", "time to first token", "s", 1000)
    plot_latencies(results, axes[1][1], "time_per_output_token_ms", "time per output token", "ms", 1)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        panel.set_axisbelow(True)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="where pagedkv-server and pagedkv-load lie")
    parser.add_argument("--from", dest="earlier", metavar="FILE", help="show what --json wrote; measure nothing")
    parser.add_argument("--server", default="", help="options of pagedkv-server")
    parser.add_argument("--load", default="", help="options of pagedkv-load")
    parser.add_argument("--plot", help="PNG to write; needs matplotlib")
    parser.add_argument("--json", help="both reports")
    options = parser.parse_args()
    if options.earlier:
        with open(options.earlier) as file:
            results = json.load(file)
    elif options.folder:
        results = {policy: measure(options.folder, policy, options.server, options.load) for policy in POLICIES}
    else:
        parser.error("where are the programs? Or --from a report")
    print("\n| | paged | reserved at maximum length |\n| --- | ---: | ---: |")
    for name, value in ROWS:
        print(f"| {name} | {value(results['paged'])} | {value(results['reserved'])} |")
    if options.plot:
        plot(results, options.plot)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file)


if __name__ == "__main__":
    main()
