"""Two hundred streaming clients, half of which hang up, against `openk2 serve` in a process of its own.

`pytest tests/serve/test_load.py -m slow -rP` prints what it saw before and after.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from openk2.serve.worker import IDLE_SECONDS

CLIENTS, WARM, WAVES = 200, 2, 6


def read_metrics(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics").text
    return {name: float(value) for name, value in re.findall(r"^(\S+) ([0-9.e+-]+)$", text, re.MULTILINE)}


def resident_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


async def talk(client: httpx.AsyncClient, number: int) -> str:
    """One streamed answer, read to its end or left after some parts; what became of it."""
    rng = random.Random(number)
    leaves_after = rng.randrange(1, 30) if number % 2 else None
    text = " ".join(rng.choice(("stone", "river", "seven", "walk", "of")) for _ in range(rng.randrange(5, 120)))
    body = {
        "model": "synthetic-tiny",
        "messages": [{"role": "system", "content": "You are brief. " * 20}, {"role": "user", "content": text}],
        "max_tokens": rng.randrange(20, 90),
        "stream": True,
    }
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            return str(response.status_code)
        parts, done = 0, False
        async for line in response.aiter_lines():
            parts += line.startswith("data: {")
            done = done or line == "data: [DONE]"
            assert not line.startswith('data: {"error"'), line
            if parts == leaves_after:
                return "left"
        return "whole" if done else "cut"


async def wave(url: str, first: int) -> Counter[str]:
    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        return Counter(await asyncio.gather(*(talk(client, first + n) for n in range(CLIENTS))))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_two_hundred_clients_leave_nothing_behind() -> None:
    command = [sys.executable, "-m", "openk2", "serve", "--synthetic", "tiny", "--port", "0", "--cache-tokens", "16384"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        url = server.stderr.readline().rpartition(" on ")[2].strip().removesuffix("/v1")
        try:
            states = []
            for number in range(WAVES):
                found = asyncio.run(wave(url, number * CLIENTS))
                until = time.monotonic() + 30
                while (idle := read_metrics(url))["openk2_running"] or idle["openk2_waiting"]:
                    assert time.monotonic() < until, "sequences of clients that are gone go on"
                    time.sleep(0.1)
                busy = resident_mb(server.pid)
                time.sleep(IDLE_SECONDS + 2)
                states.append({"answers": dict(found), "MB": resident_mb(server.pid), "metrics": idle})
                told = {name: value for name, value in idle.items() if "cache_blocks" in name}
                print(json.dumps({**states[-1], "MB before it is given back": busy, "metrics": told}))
            for state in states:
                assert set(state["answers"]) == {"whole", "left"} and state["answers"]["left"] > CLIENTS * 0.45
                metrics = state["metrics"]
                blocks = {part: metrics[f'openk2_cache_blocks{{state="{part}"}}'] for part in ("free", "kept", "used")}
                assert blocks["used"] == 0 and sum(blocks.values()) == 256
                assert not [name for name in metrics if re.search(r'status="5', name)]
            # The first waves fill the caches of compiled products; after them memory comes back to what it was.
            assert states[-1]["MB"] < states[WARM - 1]["MB"] * 1.05
            assert httpx.get(f"{url}/health").status_code == 200
        finally:
            server.terminate()
    assert server.returncode == 0
