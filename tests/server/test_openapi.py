"""The description of the HTTP interface, and requests that schemathesis makes of it: no answer is 5xx, and each is as
described."""

import itertools
import re

import pytest
from running import Running, ask

schemathesis = pytest.importorskip("schemathesis", reason="no schemathesis: pip install 'fastrnn[test]'")
pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
import hypothesis  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

from fastrnn.serving.server.live import PAGES  # noqa: E402

pytestmark = [pytest.mark.any_isa, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
EXAMPLES = 20  # of each operation and kind
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def described(model, two_ends):
    with Running({"m": model, "two": two_ends}) as server:
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.http}/openapi.json")
        yield server, schema


def test_every_route_is_described(described):
    server, _ = described
    status, answer, _ = ask(server, "GET", "/openapi.json")
    assert (status, answer["openapi"]) == (200, "3.1.0")
    config = server.server._http.config
    app = config.loaded_app
    while not hasattr(app, "routes"):
        app = app.app
    files = {f"/page/{name}" for name in PAGES}
    known = {route.path_format for route in app.routes if hasattr(route, "methods")} - files
    assert set(answer["paths"]) == known


def test_made_requests(described):
    """Models that exist and that don't, bodies that are as described, almost, or not at all."""
    _, schema = described
    for result in schema.get_all_operations():
        operation = result.ok()
        seen = set()
        check(operation, schemathesis.GenerationMode.POSITIVE, EXAMPLES, seen)
        if operation.method == "post" and operation.path.endswith(("infer", "move")):
            check(operation, schemathesis.GenerationMode.NEGATIVE, EXAMPLES, seen)
            assert 400 in seen
        if "{model}" in operation.path:
            assert 404 in seen
        assert operation.path.endswith("move") or 200 in seen, f"{operation.path}: {seen}"


def check(operation, mode, most, seen):
    """Make requests; their statuses go into `seen`."""
    turns = itertools.count()

    @hypothesis.settings(
        max_examples=most,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def run(case):
        turn = next(turns)
        if turn % 4:
            case.path_parameters.update({"model": ("two", "m", "m")[turn % 3], "version": "1"})
        if turn % 2 and isinstance(case.body, dict) and case.media_type == "application/json":
            x = {"name": "x", "datatype": "FP32", "shape": [1, 1, 5], "data": [0.0] * 5}
            case.body.update(inputs=[x], outputs=[])  # the parameters stay those that were made
            case.headers.pop("inference-header-content-length", None)
        parameters = case.body.get("parameters") if isinstance(case.body, dict) else None
        if isinstance(parameters, dict) and isinstance(parameters.get("timeout"), int) and parameters["timeout"] > 0:
            parameters["timeout"] = 60_000_000  # a shorter time may be over, which is 504, as it was asked for
        response = case.call(timeout=30)
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    run()


def test_the_paths_are_those_of_the_protocol(described):
    _, schema = described
    for result in schema.get_all_operations():
        assert re.match(r"/(v2|metrics|live|openapi.json|$)", result.ok().path)
