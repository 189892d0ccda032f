"""Snapshots of a pool: an increment spares the files that it needs, and an interrupted restore opens no slot."""

import numpy as np
import pytest
from pool_models import MODELS, opened, same
from test_model_stream import some

import fastrnn
from fastrnn.serving import pool_snapshots
from fastrnn.serving.pool import StreamPool

pytestmark = pytest.mark.any_isa


def test_an_increment_does_not_replace_what_it_follows(tmp_path):
    pool, slots = opened(MODELS["lstm"], 3)
    last, base, first, second = None, *(tmp_path / name for name in ("base", "first", "second"))
    token = pool.snapshot_all(base)
    for path, since in ((base, token), (first, token), (first, token), (second, None)):
        old = path.read_bytes() if path.exists() else b""
        pool.step(slots[:1], some(1, 4))
        if path == base:
            with pytest.raises(fastrnn.StateError, match=r"base: the file holds .*to another file"):
                pool.snapshot_all(path, since=since)
            assert path.read_bytes() == old
        else:
            last = pool.snapshot_all(path, since=since or last)
    for path in (base, first, second):
        with pytest.raises(fastrnn.StateError, match="the file holds a snapshot"):
            pool.snapshot_all(path, since=last)
    joined = tmp_path / "joined"
    joined.write_bytes(base.read_bytes() + first.read_bytes())
    with pytest.raises(fastrnn.StateError, match="the file holds a snapshot"):
        pool.snapshot_all(joined, since=last)
    other = MODELS["lstm"].pool(3)
    where = other.restore_all([base, first, second])
    for slot in slots.tolist():
        assert all(same(other.state(where[slot])[k], v) for k, v in pool.state(slot).items())
    joined.write_bytes(b"{}")
    assert pool.snapshot_all(joined, since=last)
    assert pool.snapshot_all(base)


@pytest.mark.parametrize("name", ["restore", "restore_all"])
def test_an_interrupted_restore_leaves_no_slot(name, monkeypatch):
    pool, slots = opened(MODELS["lstm"], 3)
    blob = pool.snapshot(slots[0]) if name == "restore" else pool.snapshot_all()
    other = MODELS["lstm"].pool(8)
    opens = StreamPool._open_with

    def interrupted(*args):
        opens(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StreamPool, "_open_with", interrupted)
        with pytest.raises(KeyboardInterrupt):
            getattr(other, name)(blob)
    assert len(other) == 0
    assert getattr(other, name)(blob)


def test_a_pool_that_is_closed_after_its_file_was_written_has_saved_it(tmp_path, monkeypatch):
    model = fastrnn.from_arrays("gru", W=np.ones((12, 3), np.float32), R=np.ones((12, 4), np.float32))
    pool, write = model.pool(4), pool_snapshots.replace_file
    pool.step([pool.open()], np.ones((1, 3), np.float32))

    def written(*args, **options):
        write(*args, **options)
        pool.close()

    monkeypatch.setattr(pool_snapshots, "replace_file", written)
    assert isinstance(pool.snapshot_all(tmp_path / "all"), str)
    assert len(model.pool(4).restore_all(tmp_path / "all")) == 1
