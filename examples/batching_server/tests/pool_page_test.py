"""The pool's page in a real headless browser, while requests run: it draws, and its numbers are the server's.

Usage: pool_page_test.py CHROMIUM SERVER_BINARY [screenshot.png]
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request

CHROMIUM, SERVER = sys.argv[1:3]
SCREENSHOT = sys.argv[3] if len(sys.argv) > 3 else None


def post(url, body):
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode())
    return urllib.request.urlopen(request, timeout=300).read()


def browse(url, arguments, profile):
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", "--window-size=1280,1000"] + arguments + [url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def main():
    server = subprocess.Popen([SERVER, "--port", "0", "--pool-pages", "1024"], stdout=subprocess.PIPE, text=True)
    url = re.search(r"http://[^/]+", server.stdout.readline()).group(0)
    model = json.load(urllib.request.urlopen(url + "/v1/models"))["data"][0]["id"]
    # Shared prompts, several samples of one, and enough of them that the pool is full and prefixes are evicted.
    text = "The same long beginning of every prompt, so that its pages are shared. " * 4
    stop = threading.Event()

    def client(i):
        number = 0
        while not stop.is_set():
            number += 1
            post(url, {"model": model, "prompt": f"{text}{i} {number}", "max_tokens": 600, "n": 1 + i % 3,
                       "temperature": 1, "ignore_eos": True})

    clients = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in clients:
        thread.start()
    with tempfile.TemporaryDirectory() as profile:
        page = browse(url + "/", ["--virtual-time-budget=6000", "--dump-dom"], profile)
        if SCREENSHOT:
            browse(url + "/", ["--virtual-time-budget=15000", f"--screenshot={os.path.abspath(SCREENSHOT)}"], profile)
    stop.set()
    for thread in clients:
        thread.join()
    server.send_signal(signal.SIGTERM)
    output, _ = server.communicate(timeout=60)

    cards = dict((name, value) for value, name in re.findall(r'class="card"><b>([^<]*)</b><span>([^<]*)</span>', page))
    number = lambda name: float(cards[name].replace(",", "").replace("%", ""))
    assert "1,024 pages of 16 tokens" in page, page[:3000]
    assert number("used") + number("evictable") + number("free") == 1024, cards
    assert number("used") > 0 and number("running") > 0, cards
    assert page.count('class="chip"') > 0, "no sequence is listed"
    assert re.search(r'<canvas id="map"[^>]*width="\d{3,}"', page), "the map was not drawn"
    assert "drained; 0 pages still held" in output, output
    print("the page shows:", cards)


main()
