"""New weights for a server that runs: RL over an endpoint is RL in one process, and what does not fit is refused."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_kit import talk_dialogues
from running_server import CODEC, Running, eventually, running
from safetensors.torch import save_file
from scripted_engine import ScriptedEngine
from small_checkpoint import small_model

from openk2.cli import main
from openk2.config import OptimConfig, RLConfig
from openk2.engine import Engine, EngineSettings
from openk2.engine.remote import RemoteSampler
from openk2.engine.weights import engine_weights, weights_hash
from openk2.model.model import Model
from openk2.observe.console import Console
from openk2.observe.metrics import read_metrics
from openk2.posttrain.rl import loop
from openk2.protocols import SamplingParams

EXACT = EngineSettings(attention="invariant")  # which requests share a step is a matter of chance


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openk2.train.session.fusion_available", lambda: (False, "a test"))


def policy(seed: int = 1) -> Model:
    return Model(small_model().config, compute_dtype=torch.bfloat16).init_weights(seed)


def trained(path: Path, make_sampler: Any) -> tuple[Model, list[dict[str, Any]]]:
    config = RLConfig(
        steps=2, prompts_per_step=2, group_size=3, token_budget=8, ptx_examples=2, dtype="bf16",
        optim=OptimConfig(lr=1e-3),
    )  # fmt: skip
    model = policy()
    loop.rl(config, model, CODEC, talk_dialogues(4), path, Console(stream=io.StringIO()), make_sampler=make_sampler)
    times = re.compile(r"wall|_s$|per_s|rss|mfu|time")
    rows = [dataclasses.asdict(record) for record in read_metrics(path / "metrics.jsonl")]
    return model, [{name: value for name, value in row.items() if not times.search(name)} for row in rows]


def test_rl_over_an_endpoint_is_rl_in_this_process(tmp_path: Path) -> None:
    here, seen_here = trained(tmp_path / "here", lambda model: Engine(model, EXACT))
    shared = tmp_path / "weights"
    shared.mkdir()
    with running(Engine(policy(7), EXACT), weights_folder=shared) as server:
        there, seen_there = trained(tmp_path / "there", lambda model: RemoteSampler(server.url + "/v1", shared, model))
    assert seen_there == seen_here and len(seen_here) == 2
    assert weights_hash(there.state_dict()) == weights_hash(here.state_dict())
    assert list(shared.iterdir()) == []


def test_more_prompts_than_one_request_takes_draw_from_streams_of_their_own(tmp_path: Path) -> None:
    params = SamplingParams(max_new_tokens=2, temperature=1.0, seed=4, stop_ids=CODEC.stop_ids)
    prompts = [[5, 9]] * 131
    model = policy()
    with running(Engine(model, EXACT), weights_folder=tmp_path) as server:
        sampler = RemoteSampler(server.url + "/v1", tmp_path, model)
        found = sampler(prompts, params)
        scored = sampler.score([[5, 9, 7]])
    expected = Engine(model, EXACT)(prompts, params)
    assert [completion.ids for completion in found] == [completion.ids for completion in expected]
    assert len({completion.ids for completion in expected[-3:]}) > 1
    assert (scored[0] == Engine(model).score([[5, 9, 7]])[0]).all()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("weights")
    with running(Engine(policy(), EXACT), weights_folder=folder) as server:
        yield server


def put(server: Running, name: str, weights: dict[str, torch.Tensor]) -> dict[str, str]:
    folder = server.service.settings.weights_folder
    assert folder is not None
    save_file(weights, folder / name)
    return {"file": name, "sha256": weights_hash(weights)}


def test_new_weights_are_taken_over_and_told_by_their_hash(server: Running) -> None:
    prompt = {"prompt": [5, 9, 200], "max_tokens": 8, "temperature": 0, "return_token_ids": True}
    before = server.post("/v1/completions", prompt).json()["choices"][0]["token_ids"]
    other = policy(3)
    body = put(server, "new.safetensors", engine_weights(other))
    response = server.post("/v1/weights", body)
    assert response.status_code == 200 and response.json() == {"sha256": body["sha256"]}
    after = server.post("/v1/completions", prompt).json()["choices"][0]["token_ids"]
    expected = Engine(other, EXACT)([prompt["prompt"]], SamplingParams(max_new_tokens=8, stop_ids=CODEC.stop_ids))[0]  # type: ignore[list-item]
    assert tuple(after) == expected.ids and after != before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda body: {"sha256": "0" * 64}, "sha256: saw 0000"),
        (lambda body: {"file": "missing.safetensors"}, "missing.safetensors cannot be read"),
        (lambda body: {"file": "../new.safetensors"}, "file: "),
        (lambda body: {"file": "new.pt"}, "file: "),
    ],
)
def test_what_is_not_the_file_it_should_be_is_refused(server: Running, change: Any, complaint: str) -> None:
    body = put(server, "new.safetensors", engine_weights(policy(3)))
    response = server.post("/v1/weights", {**body, **change(body)})
    assert response.status_code in (400, 422) and complaint in response.json()["error"]["message"]


def test_weights_of_another_model_and_no_weights_change_nothing(server: Running) -> None:
    weights = engine_weights(policy(3))
    short = dict(list(weights.items())[1:])
    wide = {**weights, "lm_head.weight": weights["lm_head.weight"].float()}
    for name, wrong, complaint in (
        ("short", short, "saw .* as nothing"),
        ("wide", wide, "saw lm_head.weight as float"),
    ):
        response = server.post("/v1/weights", put(server, f"{name}.safetensors", wrong))
        assert response.status_code == 400 and re.search(complaint, response.json()["error"]["message"])
    folder = server.service.settings.weights_folder
    assert folder is not None
    (folder / "junk.safetensors").write_bytes(b"junk" * 100)
    response = server.post("/v1/weights", {"file": "junk.safetensors", "sha256": "0" * 64})
    assert response.status_code == 400 and "junk.safetensors cannot be read" in response.json()["error"]["message"]
    assert server.get("/health").status_code == 200


def test_no_weights_are_taken_while_an_answer_is_written_nor_where_no_folder_is_named(tmp_path: Path) -> None:
    engine = ScriptedEngine(CODEC, [5] * 10)
    body = {"file": "new.safetensors", "sha256": "0" * 64}
    with running(engine, weights_folder=tmp_path) as server:
        engine.going.clear()
        with server.openai().completions.create(model="openk2", prompt="a", max_tokens=4, stream=True):
            eventually(lambda: engine.has_work)
            response = server.post("/v1/weights", body)
            assert response.status_code == 409 and "writes 1 answers" in response.json()["error"]["message"]
            engine.going.set()
    with running(ScriptedEngine(CODEC)) as server:
        assert server.post("/v1/weights", body).status_code == 404


def test_rl_wants_both_the_endpoint_and_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rl", str(tmp_path), "--data", "x", "--endpoint", "http://127.0.0.1:9/v1"]) == 2
    assert "saw one of --endpoint and --weights-folder" in capsys.readouterr().err
