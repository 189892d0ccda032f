"""The cache of packed weights: shared, the same bits, and never trusted further than it proves itself."""

import errno
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn.machine import _isa, container, files, packed_files, pages

ROOT = Path(__file__).resolve().parents[2]
X = np.random.default_rng(1).normal(size=(1, 4, 50)).astype(np.float32)


def make(seed=0, hidden=100):
    """An LSTM of 0.24 MB."""
    rng = np.random.default_rng(seed)
    return fastrnn.from_arrays(
        "lstm", W=rng.normal(size=(4 * hidden, 50)) * 0.2, R=rng.normal(size=(4 * hidden, hidden)) * 0.2
    )


@pytest.fixture
def file(tmp_path):
    """A model's file."""
    make().save(tmp_path / "m.fastrnn")
    return tmp_path / "m.fastrnn"


@pytest.fixture
def cache(tmp_path):
    """A folder that is not there yet."""
    return tmp_path / "deep" / "cache"


def packs(model):
    """The packed weights of a model: whether each is mapped from a file."""
    return [packed.mapped for packed in model._core._weights._packed.values()]


def entries(cache):
    return sorted(cache.glob("*"))


def answer(model):
    stream = model.stream()
    return b"".join([model(X).tobytes(), *(stream.step(x).tobytes() for x in X[0])])


def test_weights_are_packed_once_and_mapped_afterwards(file, cache, monkeypatch, caplog):
    want = answer(fastrnn.load(file))
    first = fastrnn.load(file, cache=cache)
    (entry,) = entries(cache)
    before = entry.stat()
    monkeypatch.setattr(packed_files.files, "write_once", None)
    for model in (first, fastrnn.load(file, cache=str(cache))):
        assert packs(model) == [True]
        assert answer(model) == want
        assert model.memory_bytes >= entry.stat().st_size - 4096
    assert entry.stat() == before
    assert packs(fastrnn.load(file)) == [False]
    assert caplog.records == []


def test_bytes_have_files_too(file, cache):
    want = answer(fastrnn.load(file))
    for _ in range(2):
        model = fastrnn.load(file.read_bytes(), cache=cache)
        assert packs(model) == [True]
        assert answer(model) == want
    assert len(entries(cache)) == 1


def test_the_environment_names_the_cache_of_fastrnn_files(file, cache, monkeypatch):
    monkeypatch.setenv("FASTRNN_CACHE", str(cache))
    assert packs(fastrnn.load(file)) == [True]
    assert packs(fastrnn.load(file, cache=cache.parent / "other")) == [True]
    assert len(entries(cache)) == len(entries(cache.parent / "other")) == 1
    fastrnn.load(ROOT / "examples" / "tone_words.onnx")
    assert len(entries(cache)) == 1
    monkeypatch.setenv("FASTRNN_CACHE", "")
    assert packs(fastrnn.load(file)) == [False]


def test_a_cache_that_is_no_path_or_not_for_the_format(file, cache):
    with pytest.raises(fastrnn.ModelFormatError, match="cache must be the path of a folder, got 5"):
        fastrnn.load(file, cache=5)
    with pytest.raises(fastrnn.ModelFormatError, match=r"onnx files do not take cache=: it is for .fastrnn files: con"):
        fastrnn.load(ROOT / "examples" / "tone_words.onnx", cache=cache)


def test_small_weights_are_not_worth_a_file(tmp_path, cache):
    make(hidden=8).save(tmp_path / "small.fastrnn")
    assert packs(fastrnn.load(tmp_path / "small.fastrnn", cache=cache)) == [False]
    assert entries(cache) == []


def test_every_other_weight_has_another_file(file, cache, tmp_path):
    """One bit, another gate's place, another tensor of the same shape."""
    models = [make(), make(seed=1)]
    W, R = np.random.default_rng(0).normal(size=(2, 300, 300)).astype(np.float32) * 0.1
    changed = W.copy()
    changed.view(np.uint32)[3, 5] ^= 1
    models += [fastrnn.from_arrays("rnn", W=a, R=b) for a, b in ((W, R), (R, W), (changed, R), (W.T, R))]
    for _ in range(2):
        for k, model in enumerate(models):
            model.save(tmp_path / f"{k}.fastrnn")
            x = X if k < 2 else np.resize(X, (1, 2, 300))
            assert fastrnn.load(tmp_path / f"{k}.fastrnn", cache=cache)(x).tobytes() == model(x).tobytes()
    assert len(entries(cache)) == len(models)


def test_two_files_of_one_model_with_the_tensors_exchanged(tmp_path, cache):
    """What identifies a tensor is its content, not its name or place."""
    W, R = np.random.default_rng(0).normal(size=(2, 300, 300)).astype(np.float32) * 0.1
    for k, (a, b) in enumerate([(W, R), (R, W)]):
        fastrnn.from_arrays("rnn", W=a, R=b).save(tmp_path / f"{k}.fastrnn")
    x = np.resize(X, (1, 2, 300))
    got = [fastrnn.load(tmp_path / f"{k}.fastrnn", cache=cache)(x) for k in range(2)]
    assert (got[0] != got[1]).any()


def test_each_instruction_set_and_layout_has_its_own_file(cache):
    W = np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32)
    available = _isa.isa_info()["available"]
    for _ in range(2):
        for isa in available:
            packed = _isa.pack_linear(W, isa=isa, store=packed_files.Store(cache))
            assert packed.mapped
        assert len(entries(cache)) == len(available)
    names = [container.map_file(entry).metadata["of"] for entry in entries(cache)]
    assert all(re.match(r"\(\('layout', \d+, '", name) for name in names)
    store = packed_files.Store(cache)
    what = ("layout", 0, available[0], "linear", "float32", 300, 200)
    assert store._found(cache / entries(cache)[0].name, repr((what, [])), 1) is None


def rewrite(entry, change):
    """Change the bytes of a file as an editor would."""
    os.chmod(entry, 0o600)
    data = bytearray(entry.read_bytes())
    data = change(data) or data
    entry.write_bytes(data)


def flip(data):
    data[-5000] ^= 1


DAMAGES = {
    "a bit": (flip, "its checksum is wrong"),
    "cut": (lambda data: data[:-4], "does not fit"),
    "empty": (lambda data: bytearray(1)[:0] + b"x", "header is longer"),
    "no header": (lambda data: data[:30], "header is longer"),
    "longer": (lambda data: data + b"0000", "tensors"),
    "another text": (lambda data: data.replace(b"'float32'", b"'float99'"), "something else"),
    "another dtype": (lambda data: data.replace(b'"F32"', b'"I32"'), "something else"),
    "no checksum": (lambda data: data.replace(b'"sha256"', b'"sha257"'), "checksum is missing"),
    "another checksum": (lambda data: data.replace(b'"sha256":"', b'"sha256":"00')[:-2], "checksum is wrong"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_packed_again(damage, file, cache, caplog):
    want = answer(fastrnn.load(file, cache=cache))
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    change, text = DAMAGES[damage]
    rewrite(entry, change)
    model = fastrnn.load(file, cache=cache)
    assert packs(model) == [True]
    assert answer(model) == want
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(entry) in record.getMessage()
    assert "it is packed again" in record.getMessage()
    assert re.search(text, record.getMessage())
    assert entry.read_bytes() == whole
    assert entry.stat().st_mtime < 1_300_000_000


def test_a_whole_file_is_not_read_and_a_copy_is(file, cache, monkeypatch, caplog):
    """The time of modification proves that the file was not written since; without it the checksum does."""
    fastrnn.load(file, cache=cache)
    (entry,) = entries(cache)
    read = []
    real = packed_files._checksum
    monkeypatch.setattr(packed_files, "_checksum", lambda array: read.append(1) or real(array))
    fastrnn.load(file, cache=cache)
    assert read == []
    os.utime(entry)
    assert packs(fastrnn.load(file, cache=cache)) == [True]
    assert read == [1]
    assert caplog.records == []


def test_a_file_that_others_may_write_is_replaced(file, cache, caplog):
    fastrnn.load(file, cache=cache)
    (entry,) = entries(cache)
    assert entry.stat().st_mode & 0o333 == 0
    for mode in (0o464, 0o446):
        entry.chmod(mode)
        caplog.clear()
        assert packs(fastrnn.load(file, cache=cache)) == [True]
        assert "other users may write it" in caplog.records[0].getMessage()
        assert entry.stat().st_mode & 0o022 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_file_of_another_user_is_not_used(file, cache, caplog):
    fastrnn.load(file, cache=cache)
    (entry,) = entries(cache)
    os.chown(entry, 12345, 12345)
    assert packs(fastrnn.load(file, cache=cache)) == [True]
    assert "other users may write it: owner 12345" in caplog.records[0].getMessage()
    assert entry.stat().st_uid == 0
    os.chown(entry, 12345, 12345)
    os.chown(file, 12345, 12345)  # who may write the model's file anyway
    caplog.clear()
    assert packs(fastrnn.load(file, cache=cache)) == [True]
    assert caplog.records == []


def test_a_link_is_replaced_and_not_what_it_names(file, cache, tmp_path, caplog):
    fastrnn.load(file, cache=cache)
    (entry,) = entries(cache)
    (tmp_path / "precious").write_bytes(b"mine")
    entry.unlink()
    entry.symlink_to(tmp_path / "precious")
    assert packs(fastrnn.load(file, cache=cache)) == [True]
    assert (tmp_path / "precious").read_bytes() == b"mine"
    assert not entry.is_symlink()
    assert "it is a link" in caplog.records[0].getMessage()


def test_readers_of_the_model_may_read_its_packed_weights(file, cache):
    for mode, want in ((0o644, 0o444), (0o600, 0o400), (0o640, 0o440)):
        file.chmod(mode)
        folder = cache / oct(mode)
        fastrnn.load(file, cache=folder)
        assert entries(folder)[0].stat().st_mode & 0o777 == want
    fastrnn.load(file.read_bytes(), cache=cache / "bytes")
    assert entries(cache / "bytes")[0].stat().st_mode & 0o777 == 0o400


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_cache_that_can_not_be_written_is_one_warning(code, file, cache, monkeypatch, caplog):
    model = fastrnn.load(file)

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_write_all", fail)
    for load in range(1, 3):
        found = fastrnn.load(file, cache=cache)
        assert packs(found) == [False]
        assert answer(found) == answer(model)
        assert len(caplog.records) == load
    assert os.strerror(code) in caplog.records[0].getMessage()
    assert "packed weights take private memory" in caplog.records[0].getMessage()
    assert entries(cache) == []


def test_a_full_disk(file, cache, caplog):
    """A real one: /dev/full is no folder, but a limit of the size of files fails likewise."""
    program = f"""
import resource, signal, sys
import fastrnn
want = fastrnn.load({str(file)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
found = fastrnn.load({str(file)!r}, cache={str(cache)!r})
import numpy as np
x = np.ones((1, 3, 50), np.float32)
assert found(x).tobytes() == want(x).tobytes()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stderr  # warnings reach stderr without a configured logging
    assert "packed weights take private memory" in done.stderr
    assert entries(cache) == []


@pytest.mark.parametrize("place", ["file", "missing/../../nowhere\0", "link"])
def test_a_folder_that_is_none(place, file, tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    if "\0" in place:
        with pytest.raises((fastrnn.ModelFormatError, ValueError)):
            fastrnn.load(file, cache=str(tmp_path / place))
        return
    model = fastrnn.load(file, cache=tmp_path / place)
    assert packs(model) == [False]
    assert len(caplog.records) == 1


def test_no_room_to_map_is_private_memory(file, cache, monkeypatch, caplog):
    want = answer(fastrnn.load(file, cache=cache))
    real = pages.map_handle

    def fail(handle, name):
        if str(name).endswith(".packed"):
            raise MemoryError
        return real(handle, name)

    monkeypatch.setattr(pages, "map_handle", fail)
    model = fastrnn.load(file, cache=cache)
    assert packs(model) == [False]
    assert answer(model) == want
    assert len(caplog.records) == 1


def test_a_packed_file_that_is_replaced_or_removed_while_mapped(file, cache):
    model = fastrnn.load(file, cache=cache)
    want = answer(model)
    (entry,) = entries(cache)
    entry.with_name("new").write_bytes(bytes(entry.stat().st_size))
    os.replace(entry.with_name("new"), entry)
    assert answer(model) == want
    entry.unlink()
    assert answer(model) == want
    assert answer(fastrnn.load(file, cache=cache)) == want


PROGRAM = """
import sys
import numpy as np
import fastrnn
sys.stdin.readline()
model = fastrnn.load(sys.argv[1], cache=sys.argv[2])
assert [p.mapped for p in model._core._weights._packed.values()] == [True]
print(model(np.ones((1, 3, 50), np.float32)).tobytes().hex())
"""


def test_many_processes_at_once_write_one_file(file, cache):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(file), str(cache)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for _ in range(6)
    ]  # fmt: skip
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    found = [process.communicate(timeout=120) for process in started]
    assert {error for _, error in found} == {""}
    want = fastrnn.load(file)(np.ones((1, 3, 50), np.float32)).tobytes().hex()
    assert {out.strip() for out, _ in found} == {want}
    assert len(entries(cache)) == 1


def test_a_process_that_is_killed_while_it_packs_stops_nobody(file, cache):
    program = f"""
import os, signal
import fastrnn
from fastrnn.machine import files
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
files._write_all = die
fastrnn.load({str(file)!r}, cache={str(cache)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert len(entries(cache)) == 1  # a temporary file
    assert packs(fastrnn.load(file, cache=cache)) == [True]
    assert [entry.suffix for entry in entries(cache)] == [".packed"]


def test_a_process_that_holds_the_cache_for_ever_is_not_waited_for(file, cache, monkeypatch):
    monkeypatch.setattr(packed_files, "MOST_WAIT", 0.05)
    cache.mkdir(parents=True)
    with packed_files._alone(cache):
        assert packs(fastrnn.load(file, cache=cache)) == [True]


def test_threads_that_load_at_once(file, cache):
    found = []
    threads = [threading.Thread(target=lambda: found.append(fastrnn.load(file, cache=cache))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [packs(model) for model in found] == [[True]] * 6
    assert len({answer(model) for model in found}) == 1
    assert len(entries(cache)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_shares_the_map_and_can_load(file, cache):
    model = fastrnn.load(file, cache=cache)
    want = answer(model)
    child = os.fork()
    if child == 0:
        os._exit(0 if answer(model) == want == answer(fastrnn.load(file, cache=cache)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_sizes_that_come_later_share_their_weights(tmp_path, cache):
    text = "h = tanh(W @ x + R @ prev(h))"
    rng = np.random.default_rng(0)
    model = fastrnn.from_equations(text, W=rng.normal(size=(200, 100)), R=rng.normal(size=(200, 200)))
    model.save(tmp_path / "m.fastrnn")
    found = fastrnn.load(tmp_path / "m.fastrnn", cache=cache)
    x = rng.normal(size=(2, 5, 100)).astype(np.float32)
    assert found(x).tobytes() == model(x).tobytes()
    assert set(packs(found)) == {True}
