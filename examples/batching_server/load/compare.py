#!/usr/bin/env python3
"""Paged admission against reservation at maximum length: the same server, memory, model and requests.

Usage: compare.py BIN_FOLDER [--plot out.png] [--json out.json] [--server "options"] [--load "options"]
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import tempfile

POLICIES = {"paged": [], "reserved": ["--reserve-max-length"]}
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


def plot(results, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for policy, color in (("paged", "#3b82f6"), ("reserved", "#e08a1e")):
        timeline = results[policy]["server"]["timeline"]
        seconds = [sample["seconds"] for sample in timeline]
        left.plot(seconds, [sample["running"] for sample in timeline], color=color, label=policy)
        pages = results[policy]["server"]["pages"]
        right.plot(seconds, [100 * sample["used"] / pages for sample in timeline], color=color, label=policy)
    left.set_ylabel("sequences served at once")
    right.set_ylabel("pages that hold tokens, %")
    right.set_ylim(0, 105)
    for axes in (left, right):
        axes.set_xlabel("seconds")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="where pagedkv-server and pagedkv-load lie")
    parser.add_argument("--server", default="", help="options of pagedkv-server")
    parser.add_argument("--load", default="", help="options of pagedkv-load")
    parser.add_argument("--plot", help="PNG to write; needs matplotlib")
    parser.add_argument("--json", help="both reports")
    options = parser.parse_args()
    results = {policy: measure(options.folder, policy, options.server, options.load) for policy in POLICIES}
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
