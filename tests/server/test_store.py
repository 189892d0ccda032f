"""The stores keep one entry a key, and give it to one server at a time; records are refused unless they are whole."""

import asyncio
import itertools
import random
import struct
import sys

import numpy as np
import pytest

fsspec = pytest.importorskip("fsspec", reason="no fsspec: pip install 'fastrnn[serve]'")
import store_programs  # noqa: E402, F401

from fastrnn.errors import ShapeError  # noqa: E402
from fastrnn.serving.store import Fenced, Held, Record, StoreError, key_of, open_store  # noqa: E402

pytestmark = pytest.mark.any_isa
A, B = "aa" * 16, "bb" * 16
numbers = itertools.count()


@pytest.fixture(params=["folder", "memory", "likes3", "redis"])
def url(request, tmp_path):
    """A store that is empty."""
    if request.param == "folder":
        return str(tmp_path / "store")
    if request.param == "redis":
        redis = request.getfixturevalue("redis")
        return f"redis://127.0.0.1:{redis.port}/{next(numbers) % 16}"
    return f"{request.param}://test{next(numbers)}"


def using(url, body):
    """Run `body(store, other store on the same URL)`."""

    async def main():
        stores = [open_store(url) for _ in range(2)]
        try:
            await body(*stores)
        finally:
            for store in stores:
                await store.close()

    asyncio.run(asyncio.wait_for(main(), 120))


def test_an_entry_is_claimed_written_and_taken_over(url):
    key = key_of("m", f"one{url}")

    async def body(one, two):
        assert await one.read(key) is None
        assert await one.claim(key, 0, A, b"first") == 1
        assert await two.read(key) == Held(1, A, b"first")
        await one.write(key, 1, A, b"second" * 1000)
        assert await two.read(key) == Held(1, A, b"second" * 1000)
        assert await two.claim(key, 1, B, b"third") == 2
        assert await one.read(key) == Held(2, B, b"third")

    using(url, body)


def test_who_has_lost_it_writes_nothing(url):
    key = key_of("m", f"fence{url}")

    async def body(one, two):
        await one.claim(key, None, A, b"a")
        assert await two.claim(key, None, B, b"b") == 2
        with pytest.raises(Fenced) as caught:
            await one.write(key, 1, A, b"late")
        assert caught.value.epoch == 2
        with pytest.raises(Fenced):
            await one.claim(key, 1, A, b"late")
        with pytest.raises(Fenced):
            await one.claim(key, 0, A, b"late")
        assert await two.read(key) == Held(2, B, b"b")
        await two.write(key, 2, B, b"b2")
        assert (await one.read(key)).data == b"b2"

    using(url, body)


def test_the_same_epoch_of_another_holder_is_not_ones_own(url):
    """After a store was emptied, epochs begin again."""
    key = key_of("m", f"same{url}")

    async def body(one, two):
        await two.claim(key, 0, B, b"b")
        with pytest.raises(Fenced):
            await one.write(key, 1, A, b"a")
        assert (await two.read(key)).data == b"b"

    using(url, body)


def test_what_has_vanished_is_written_again(url):
    key = key_of("m", f"gone{url}")

    async def body(one, two):
        await one.write(key, 7, A, b"a")
        assert await two.read(key) == Held(7, A, b"a")

    using(url, body)


def test_one_of_many_wins_each_epoch(url):
    """A lost race is a Fenced, and who was told that it won is the one that is there."""
    key = key_of("m", f"race{url}")
    holders = [f"{i:032x}" for i in range(8)]

    async def body(one, two):
        for epoch in range(12):
            claims = [s.claim(key, epoch, h, h.encode()) for s, h in zip(itertools.cycle([one, two]), holders)]
            results = await asyncio.gather(*claims, return_exceptions=True)
            won = [h for h, r in zip(holders, results, strict=True) if not isinstance(r, BaseException)]
            assert all(isinstance(r, (int, Fenced)) for r in results), results
            assert len(won) == 1
            assert await one.read(key) == Held(epoch + 1, won[0], won[0].encode())

    using(url, body)


def test_random_claims_and_writes_follow_the_rules(url):
    """Against a model of the protocol: an entry, and who may write it."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    key = key_of("m", f"random{url}")

    async def body(one, two):
        known = {A: 0, B: 0}  # the epoch that each believes to hold
        seen = {A: 0, B: 0}  # that it last read
        entry = None
        for i in range(150):
            store, holder = rng.choice([(one, A), (two, B)])
            data = f"{i}".encode()
            what = rng.choice(["read", "claim", "take", "write", "write"])
            current = 0 if entry is None else entry.epoch
            if what == "read":
                assert await store.read(key) == entry
                seen[holder] = current
            elif what == "take" or (what == "claim" and seen[holder] == current):
                after = None if what == "take" else seen[holder]
                assert await store.claim(key, after, holder, data) == current + 1
                entry = Held(current + 1, holder, data)
                known[holder] = current + 1
            elif what == "claim":
                with pytest.raises(Fenced):
                    await store.claim(key, seen[holder], holder, data)
            elif known[holder] and entry.holder == holder and entry.epoch == known[holder]:
                await store.write(key, known[holder], holder, data)
                entry = Held(entry.epoch, holder, data)
            elif known[holder]:
                with pytest.raises(Fenced):
                    await store.write(key, known[holder], holder, data)
        assert await one.read(key) == entry

    using(url, body)


def test_ids_of_every_shape_have_keys_of_their_own(url):
    ids = [
        5,
        "5",
        "i5",
        2**64 - 1,
        "a/b",
        "../../etc/passwd",
        "\0",
        "A",
        "a",
        "é",
        "e\u0301",
        "\ud800",
        "x" * 1024,
        " ",
    ]
    ids += [f"{url}", "*", "[a]", "CON", ".", "..", "~"]
    keys = [key_of(m, id) for m in ("m", "M", "a/b", "..", "é" * 200) for id in ids]
    assert len({k.lower() for k in keys}) == len(keys)
    for key in keys:
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-/")
        assert key.count("/") == 1
        assert all(len(part) < 100 for part in key.split("/"))

    async def body(one, two):
        for key in keys[: len(ids)]:
            await one.claim(key, None, A, key.encode())
        for key in keys[: len(ids)]:
            assert (await two.read(key)).data == key.encode()

    using(url, body)


def test_foreign_and_torn_files_are_refused_and_others_stay(tmp_path):
    async def body(one, two):
        await one.claim(key_of("m", 1), None, A, b"x" * 100)
        await one.claim(key_of("m", 2), None, A, b"fine")
        file = tmp_path / key_of("m", 1) / f"{1:016x}"
        whole = file.read_bytes()
        for damaged in (b"", whole[:20], b"something else" * 10, whole[:8] + struct.pack("<Q", 9) + whole[16:]):
            file.write_bytes(damaged)
            with pytest.raises(StoreError, match=r"torn|not of fastrnn|damaged"):
                await two.read(key_of("m", 1))
        assert (await two.read(key_of("m", 2))).data == b"fine"
        (tmp_path / key_of("m", 2) / "README").write_text("a stranger's file")
        assert (await two.read(key_of("m", 2))).data == b"fine"
        assert await two.claim(key_of("m", 1), None, B, b"anew") == 2  # START goes over it
        assert (await one.read(key_of("m", 1))).data == b"anew"

    using(str(tmp_path), body)


def test_a_writer_that_was_killed_leaves_nothing_that_counts(tmp_path):
    async def body(one, two):
        key = key_of("m", 1)
        await one.claim(key, None, A, b"fine")
        (tmp_path / key / ".0123456789abcdef").write_bytes(b"half a file")
        assert (await two.read(key)).data == b"fine"
        await two.sweep(1000.0)
        assert (await two.read(key)).data == b"fine"
        await two.sweep(-1.0)
        assert await two.read(key) is None

    using(str(tmp_path), body)


def test_urls_that_are_no_store_are_refused():
    with pytest.raises(ShapeError, match="must be a URL or a folder, got int"):
        open_store(5)
    with pytest.raises(ShapeError, match="empty"):
        open_store("")
    with pytest.raises(StoreError, match="nonsense"):
        open_store("nonsense://x")
    with pytest.raises(StoreError, match=r"can't create a file only if it is absent.*use a folder"):
        open_store("plain://x")
    with pytest.raises(StoreError, match=r"store /proc/nope/x: the folder can't be made"):
        open_store("/proc/nope/x")
    with pytest.raises(StoreError) as caught:
        open_store("redis://user:secret@host:port")
    assert "secret" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of fsspec's half-made object
def test_a_url_that_lacks_its_host():
    with pytest.raises(StoreError, match=r"store ftp://: .*host"):
        open_store("ftp://")


@pytest.mark.parametrize(
    ("url", "absent", "text"),
    [
        ("redis://localhost", "redis", "store redis://localhost: redis is missing: pip install 'fastrnn[serve]'"),
        ("folder", "fsspec", "store folder: fsspec is missing: pip install 'fastrnn[serve]'"),
        ("s3://bucket/folder", "s3fs", "store s3://bucket/folder: Install s3fs to access S3"),
    ],
)
def test_a_library_that_is_missing(monkeypatch, url, absent, text):
    for name in ("files", "redis"):
        monkeypatch.delitem(sys.modules, f"fastrnn.serving.store.{name}", raising=False)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(StoreError) as caught:
        open_store(url)
    assert str(caught.value) == text


def test_a_store_that_is_down_says_so():
    pytest.importorskip("redis")

    async def body(one, two):
        with pytest.raises(StoreError, match=r"store redis://127.0.0.1:1/0: ConnectionError"):
            await one.read(key_of("m", 1))
        with pytest.raises(StoreError, match="ConnectionError"):
            await one.claim(key_of("m", 1), None, A, b"x")

    using("redis://127.0.0.1:1/0", body)


# -- records --
def record(**more):
    last = (4, 2, [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([[True], [False]]), np.array(5)])
    named = {"model": "m", "id": 42, "version": 1, "names": ("abc", "def"), "steps": 6, "snapshot": b"state" * 9}
    return Record(**{**named, "state": "live", "time": 1.25, "last": last, **more})


def same(one, two):
    plain = lambda r: {k: v for k, v in vars(r).items() if k != "last"}  # noqa: E731
    assert plain(one) == plain(two)
    assert (one.last is None) == (two.last is None)
    if one.last is not None:
        assert one.last[:2] == two.last[:2]
        for u, v in zip(one.last[2], two.last[2], strict=True):
            assert u.dtype == v.dtype
            assert u.shape == v.shape
            assert u.tobytes() == v.tobytes()


@pytest.mark.parametrize(
    "more",
    [{}, {"last": None}, {"id": "42"}, {"id": "\ud800\0é"}, {"id": 2**64 - 1}, {"snapshot": b""}, {"state": "moved"}],
)
def test_records_come_back_as_they_were(more):
    same(Record.from_bytes(record(**more).to_bytes()), record(**more))


def test_an_answer_that_is_too_large_is_not_kept():
    large = record(last=(0, 1, [np.zeros(3 << 20, np.float32)]))
    assert Record.from_bytes(large.to_bytes()).last is None


def test_a_record_with_any_byte_changed_or_missing_is_refused():
    data = record().to_bytes()
    for i in range(len(data)):
        with pytest.raises(StoreError):
            Record.from_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        with pytest.raises(StoreError):
            Record.from_bytes(data[:i])
    for other in (b"", b"\x80\x04pickle", data + b"x", data[:8] + data):
        with pytest.raises(StoreError):
            Record.from_bytes(other)


@pytest.mark.parametrize(
    "change",
    [
        (b'"steps":6', b'"steps":-'),
        (b'"state":"live"', b'"state":"dead"'),
        (b'"snapshot":45', b'"snapshot":99'),
        (b'"<f4"', b'"|O8"'),
        (b'"id":42', b'"id":[]'),
        (b"[2,3]", b"[9,9]"),
        (b'"version":1', b'"versiom":1'),
        (b'"time":1.25', b'"time":"xx"'),
    ],
)
def test_a_record_of_another_form_is_refused_although_its_checksum_is_right(change):
    import hashlib

    body = record().to_bytes()[:-16]
    assert change[0] in body
    body = body.replace(*change, 1)
    with pytest.raises(StoreError, match="of another form"):
        Record.from_bytes(body + hashlib.blake2b(body, digest_size=16).digest())
