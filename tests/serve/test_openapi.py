"""Whatever fits the published schema, and much that does not, is answered without a failure of the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from running_server import CODEC, Running, running
from schemathesis.checks import not_a_server_error
from scripted_engine import ScriptedEngine

from openk2.serve.app import create_app
from openk2.serve.settings import ServeSettings

SCHEMA = schemathesis.openapi.from_dict(create_app(ScriptedEngine(CODEC), CODEC, ServeSettings()).openapi())


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedEngine(CODEC, context=96)) as found:
        yield found


@SCHEMA.parametrize()
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
def test_no_request_breaks_the_server(case: Any, server: Running) -> None:
    response = case.call(base_url=server.url)
    case.validate_response(response, checks=[not_a_server_error])
    assert response.headers["content-type"][0].startswith(("application/json", "text/"))
    if response.status_code >= 400:
        assert set(response.json()["error"]) >= {"message", "type"}


@pytest.mark.slow
@SCHEMA.parametrize()
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
def test_no_request_of_many_breaks_the_server(case: Any, server: Running) -> None:
    case.validate_response(case.call(base_url=server.url), checks=[not_a_server_error])
