"""Put prompts to targets and keep every answer: what is there already is not asked, nor paid for, twice.

The folder holds `run.json` (targets and settings), `prompts.jsonl` (what was
asked), `answers.jsonl`, and the report. Invariants: one process works in a
folder at a time; an answer is on disk before the next request of its slot is
sent; what failed (a fault) counts as missing and is asked again at the next
start. Left out: starting servers, which the caller does.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from openk2.evaluate.testrun.endpoint import Endpoint
from openk2.evaluate.testrun.gather import PROMPTS_FILE
from openk2.evaluate.testrun.plan import Column, Request, RunRecord, requests
from openk2.evaluate.testrun.prompts import Prompt, as_lines, load_prompts
from openk2.evaluate.testrun.replies import Answer, Key
from openk2.evaluate.testrun.report import Report, render_report
from openk2.evaluate.testrun.settings import RunSettings
from openk2.evaluate.testrun.store import AnswerLog, changed_prompts, read_answers
from openk2.evaluate.testrun.targets import Target, with_options
from openk2.observe.console import Console
from openk2.observe.files import write_atomic
from openk2.observe.lock import RunLock


def run_prompts(
    prompts: Path | str,
    targets: Sequence[Target],
    out: Path | str,
    *,
    settings: RunSettings | None = None,
    console: Console | None = None,
) -> Report:
    """Ask what is missing in the folder `out`, then write its report.

    ValueError, before anything is asked, for prompts, targets, keys or a folder that are not as they should be.
    Interrupted or killed, it loses no answer that has come.
    """
    settings, console, folder = settings or RunSettings(), console or Console(), Path(out)
    loaded = load_prompts(prompts)
    if not targets:
        raise ValueError("testrun: saw no target, expected at least one; give a URL or a checkpoint folder")
    targets = with_options(targets, {}, {})  # refuses names that are not distinct
    keys = {target.name: target.key(os.environ) for target in targets}
    for target in targets:
        if target.sends_key_in_clear():
            console.warn(f"target {target.name}: its key goes over plain http, which others on the way can read")
    with RunLock(folder):
        record = RunRecord.open(folder)
        asyncio.run(_ask(loaded, targets, keys, folder, record, settings, console))
        console.line("judging the answers")
        return render_report(folder)


async def _ask(
    prompts: Sequence[Prompt],
    targets: Sequence[Target],
    keys: Mapping[str, str],
    folder: Path,
    record: RunRecord,
    settings: RunSettings,
    console: Console,
) -> None:
    async with AsyncExitStack() as stack:
        endpoints = {target.name: Endpoint(target, keys[target.name], settings) for target in targets}
        for endpoint in endpoints.values():
            stack.push_async_callback(endpoint.close)
        columns = []
        for target in targets:
            model = target.model or await endpoints[target.name].first_model()
            before = record.columns.get(target.name)
            if before is not None and before.target.model != model:
                was = before.target.model
                console.line(
                    f"{target.name}: the model is {model}, it was {was}, so what it is to answer is asked anew"
                )
            columns.append(Column(replace(target, model=model), settings.samples, settings.seed))
            record.add(columns[-1])
        record.write(folder)
        write_atomic(folder / PROMPTS_FILE, as_lines(prompts))
        missing = _missing(prompts, columns, read_answers(folder), console)
        with AnswerLog(folder) as log, console.progress("test run", len(missing), unit="answers") as progress:

            def keep(answer: Answer) -> None:
                log.append(answer)
                progress.advance()
                if answer.reply.fault is not None:
                    fault = answer.reply.fault
                    console.warn(f"{answer.target}, {answer.prompt}: {fault.kind}: {fault.message}")

            await asyncio.gather(
                *(
                    _work(endpoints[name], queue, keep)
                    for name, queue in _queues(missing).items()
                    for _ in range(min(settings.concurrency, len(queue)))
                )
            )
    for name, endpoint in endpoints.items():
        if endpoint.closed:
            console.warn(f"{name}: nothing more was asked of it: {endpoint.closed}")


def _missing(
    prompts: Sequence[Prompt], columns: Sequence[Column], answers: Mapping[Key, Answer], console: Console
) -> list[Request]:
    """The requests without an answer, each key once."""
    wanted = {request.key: request for request in requests(prompts, columns)}
    have = {key for key, answer in answers.items() if answer.reply.fault is None}
    for prompt in changed_prompts(answers, {prompt.id: prompt.hash for prompt in prompts}):
        console.line(f"{prompt}: it asks something else than when it was answered, so it is asked again")
    missing = [request for key, request in wanted.items() if key not in have]
    console.line(f"{len(wanted) - len(missing)} of {len(wanted)} answers are there, {len(missing)} to ask")
    return missing


def _queues(missing: Sequence[Request]) -> dict[str, deque[Request]]:
    queues: dict[str, deque[Request]] = {}
    for request in missing:
        queues.setdefault(request.target, deque()).append(request)
    return queues


async def _work(endpoint: Endpoint, queue: deque[Request], keep: Callable[[Answer], None]) -> None:
    while queue and not endpoint.closed:
        request = queue.popleft()
        asked_at = datetime.now(UTC).isoformat(timespec="seconds")
        reply, attempts = await endpoint.ask(request.body)
        name, prompt_hash, request_hash, sample = request.key
        keep(Answer(name, request.prompt.id, prompt_hash, request_hash, sample, asked_at, attempts, reply))
