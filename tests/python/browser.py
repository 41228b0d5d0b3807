# SPDX-License-Identifier: MIT
"""A headless Chromium: its command line, and a conversation with it for what that cannot do."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_USUAL = ["chromium", "--headless", "--no-sandbox", "--disable-gpu"]

Message = dict[str, Any]


def browse(*words: str) -> str:
    """What it prints when called with these arguments."""
    done = subprocess.run([*_USUAL, *words], check=True, capture_output=True, text=True)
    return done.stdout


class Conversation:
    """Messages of the DevTools protocol over a pair of pipes, each ended by a zero."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._count, self._read = 0, b""

    def ask(self, method: str, session: str | None = None, **parameters: object) -> Message:
        self._count += 1
        message: Message = {"id": self._count, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        answer = self.wait_for(lambda said: said.get("id") == self._count)
        assert "error" not in answer, answer
        result: Message = answer["result"]
        return result

    def wait_for(self, is_wanted: Callable[[Message], bool]) -> Message:
        while True:
            while b"\0" not in self._read:
                received = os.read(self._answers, 1 << 16)
                assert received, "the browser has gone"
                self._read += received
            text, _, self._read = self._read.partition(b"\0")
            message: Message = json.loads(text)
            if is_wanted(message):
                return message


@contextlib.contextmanager
def _talk(folder: Path) -> Iterator[Conversation]:
    command_in, commands = os.pipe()
    answers, answer_out = os.pipe()
    flags = f"--user-data-dir={folder} --remote-debugging-pipe"
    line = f"exec {' '.join(_USUAL)} {flags} 3<&{command_in} 4>&{answer_out}"
    process = subprocess.Popen(
        ["bash", "-c", line], pass_fds=(command_in, answer_out), stderr=subprocess.DEVNULL
    )
    os.close(command_in)
    os.close(answer_out)
    try:
        yield Conversation(commands, answers)
    finally:
        process.kill()
        process.wait()
        os.close(commands)
        os.close(answers)


def print_without_backgrounds(page: Path) -> bytes:
    """The PDF that a person gets whose print dialogue leaves backgrounds out, as it does by itself:
    the browser's command line never does."""
    with _talk(page.parent / "profile") as browser:
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        browser.ask("Page.enable", session)
        browser.ask("Page.navigate", session, url=page.as_uri())
        browser.wait_for(lambda said: said.get("method") == "Page.loadEventFired")
        printed = browser.ask("Page.printToPDF", session, printBackground=False)
        return base64.b64decode(printed["data"])
