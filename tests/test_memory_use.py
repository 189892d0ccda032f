"""What a .fastrnn file costs in memory, in multiples of its size. tools/memory_use.py measures it at 256 MB."""

import sys
from pathlib import Path

import pytest

import fastrnn

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
import memory_use  # noqa: E402

pytestmark = [pytest.mark.any_isa, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
MEGABYTES = 32


@pytest.mark.parametrize("kind", ["lstm", "gru", "linear"])
def test_packed_weights_are_the_only_ones_in_memory(kind, tmp_path):
    """Those of the file, of which they were made, are given back piece by piece: no peak has both."""
    memory_use.make(kind, MEGABYTES << 20, tmp_path / "m.fastrnn")
    found = memory_use.measure(tmp_path / "m.fastrnn", {}, 2)
    assert 0.9 < found["one after"][1] < 1.1
    assert 0.9 < found["one peak"][1] < 1.5
    assert 1.8 < found["2 workers"][1] < 2.2  # private memory each


@pytest.mark.parametrize("kind", ["lstm", "linear"])
def test_processes_share_packed_weights_in_a_cache(kind, tmp_path):
    memory_use.make(kind, MEGABYTES << 20, tmp_path / "m.fastrnn")
    found = memory_use.measure(tmp_path / "m.fastrnn", {"cache": str(tmp_path / "cache")}, 4)
    assert 0.9 < found["first after"][1] < 1.1
    assert 0.9 < found["later after"][1] < 1.1
    assert found["first peak"][1] < 1.5
    assert found["later peak"][1] < 0.5  # neither the file nor what was packed is read through
    assert 0.9 < found["4 workers"][1] < 1.3


def test_weights_that_are_not_packed_are_used_where_they_are_mapped(tmp_path):
    memory_use.make("embedding", MEGABYTES << 20, tmp_path / "m.fastrnn")
    found = memory_use.measure(tmp_path / "m.fastrnn", {}, 2)
    assert found["one after"][1] < 0.1  # a step looks up one row
    assert found["one peak"][1] < 0.5


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_small_weights_are_the_only_ones_in_memory_after_a_load(precision, tmp_path):
    """Packing them takes those of one layer in float32, which go back to the system."""
    memory_use.make("lstm", MEGABYTES << 20, tmp_path / "wide.fastrnn")
    wide = fastrnn.load(tmp_path / "wide.fastrnn", precision=precision)
    wide.save(tmp_path / "m.fastrnn")
    assert (tmp_path / "m.fastrnn").stat().st_size < (0.51 if precision == "bfloat16" else 0.26) * (MEGABYTES << 20)
    found = memory_use.measure(tmp_path / "m.fastrnn", {}, 2)
    assert 0.9 < found["one after"][1] < 1.4
    assert 1.8 < found["2 workers"][1] < 2.8
    cached = memory_use.measure(tmp_path / "m.fastrnn", {"cache": str(tmp_path / "cache")}, 4)
    assert cached["later after"][1] < 1.4
    assert cached["later peak"][1] < 0.7  # neither the file nor what was packed is read through or widened
    assert cached["4 workers"][1] < 1.8
