"""tools/bench/serve.py works: each kind of server answers its load generator. It asserts no time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.any_isa

ROOT = Path(__file__).resolve().parents[2]
ROUTES = ("websocket", "grpc_stream", "grpc", "many_http", "many_grpc")


def test_quick_run(tmp_path):
    pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
    file = tmp_path / "found.json"
    command = [sys.executable, str(ROOT / "tools/bench/serve.py"), "--quick", "--generated"]
    command += ["--json", str(file), "--only", *ROUTES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["machine"]["versions"]["grpcio"]
    rows = {row["route"]: row for row in found["rows"]}
    assert list(rows) == list(ROUTES)
    for route, row in rows.items():
        kinds = {"fastrnn", "echo"} | ({"today"} if route in ("websocket", "grpc_stream") else set())
        assert kinds <= set(row)
        for kind in kinds:
            assert row[kind]["messages"] == rows["websocket"]["fastrnn"]["messages"]
            assert row[kind]["messages"] > 0
            assert row[kind]["cpu_us_per_step"] > 0
        assert row["fastrnn"]["reply_bytes"] == row["echo"]["reply_bytes"]
        assert f"| {row['name']} |" in done.stdout


@pytest.mark.parametrize("route", ["websocket", "grpc_stream", "many_grpc", "http"])
def test_a_refused_request_is_seen(route, model):
    """The generator stops at an error instead of counting it as an answer."""
    import conftest

    with conftest.Running({"m": model}) as server:
        port = server.grpc if "grpc" in route else server.http
        plan = {"route": route, "port": port, "units": 2, "rows": 2, "seconds": 0.2, "model": "m", "features": 4}
        command = [sys.executable, str(ROOT / "tools/bench/serve_load.py"), json.dumps(plan)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["wrong"]
