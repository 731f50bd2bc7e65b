"""Headless Chromium by its DevTools protocol over pipes: no driver and no package is needed.

Source: https://chromedevtools.github.io/devtools-protocol, and Chromium's `--remote-debugging-pipe`: messages are JSON,
each ended by a NUL, in on file descriptor 3 and out on 4.
"""

import base64
import json
import os
import select
import subprocess
import time

from e2e.server_process import eventually
from monitoring.tools import CHROMIUM

SECONDS = 30


class Browser:
    """One page. errors: what its console and its network have complained about. requests: the addresses asked for."""

    def __init__(self, data, width=1200, height=1500):
        self.errors, self.requests = [], []
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # 3 and 4 in the child: by way of a shell, since Popen keeps descriptors and does not move them
        command = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
             "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={data}", "--remote-debugging-pipe",
             f"--window-size={width},{height}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out),
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._number, self._session = b"", 0, None
        try:
            targets = self.do("Target.getTargets")["targetInfos"]
            target = next(one["targetId"] for one in targets if one["type"] == "page")
            self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.do(f"{domain}.enable")
        except BaseException:
            self._end()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()

    def _end(self):
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def do(self, method, **parameters):
        """The result of a command; raises AssertionError with what is wrong with it."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while (answer := self._read(deadline)).get("id") != self._number:
            self._hear(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self, deadline):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"no answer within {SECONDS} s"
            more = os.read(self._in, 1 << 20)
            assert more, "the browser has ended"
            self._buffer += more
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)

    def _hear(self, event):
        told = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(told["exceptionDetails"])
            case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                self.errors.append(told["entry"])
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"])

    def open(self, url):
        """Goes to a page."""
        assert "errorText" not in self.do("Page.navigate", url=url)
        there = f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'"
        eventually(lambda: self.run(there), SECONDS)

    def run(self, script):
        """The value of an expression in the page."""
        answer = self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def scheme(self, name):
        """light or dark."""
        self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def screenshot(self, path):
        """Writes what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"]))
        return path
