"""Files that are replaced whole: links, permissions, devices, killed writers, several writers at once."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fastrnn
from fastrnn.machine.files import WRITERS, check_place, replace_file

pytestmark = pytest.mark.any_isa
MODEL = os.path.join(os.path.dirname(__file__), "..", "..", "examples", "tone_words.onnx")


def mode_of(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "rel1.fastrnn").write_bytes(b"old")
    (tmp_path / "cur.fastrnn").symlink_to("rel1.fastrnn")
    fastrnn.load(MODEL).save(tmp_path / "cur.fastrnn")
    assert os.readlink(tmp_path / "cur.fastrnn") == "rel1.fastrnn"
    assert fastrnn.load(tmp_path / "rel1.fastrnn").streamable
    assert sorted(os.listdir(tmp_path)) == ["cur.fastrnn", "rel1.fastrnn"]


def test_a_link_to_nothing_makes_its_file(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    replace_file(tmp_path / "link", b"new")
    assert (tmp_path / "there" / "file").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_permissions_stay(tmp_path, mode):
    path = tmp_path / "pool.state"
    path.write_bytes(b"old")
    path.chmod(mode)
    replace_file(path, b"new")
    assert (mode_of(path), path.read_bytes()) == (mode, b"new")


def test_new_snapshots_are_private_and_new_models_follow_the_umask(tmp_path):
    model = fastrnn.load(MODEL)
    pool = model.pool(capacity=1)
    pool.step([pool.open()], np.zeros((1, 20), np.float32))
    old = os.umask(0o022)
    try:
        pool.snapshot_all(tmp_path / "pool.state")
        model.save(tmp_path / "model.fastrnn")
    finally:
        os.umask(old)
    assert mode_of(tmp_path / "pool.state") == 0o600
    assert mode_of(tmp_path / "model.fastrnn") == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_the_owner_stays(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 4711, 4712)
    replace_file(path, b"new")
    assert (os.stat(path).st_uid, os.stat(path).st_gid) == (4711, 4712)


def test_a_device_is_written_and_stays_a_device(tmp_path):
    replace_file("/dev/null", b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OSError, match="No space left on device") as caught:
        replace_file("/dev/full", b"x")
    assert caught.value.filename == "/dev/full"
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_pipe_is_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    replace_file(tmp_path / "pipe", [b"one ", b"two"])
    reader.join(10)
    assert got == [b"one two"]
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_standard_output_is_written():
    code = "from fastrnn.machine.files import replace_file; replace_file('/dev/stdout', b'whole')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stdout == b"whole"


KILLED = """
import os, sys
from fastrnn.machine.files import replace_file
def chunks():
    yield b"half"
    print("written", flush=True)
    sys.stdin.read()
replace_file(sys.argv[1], chunks())
"""


def start_writer(path):
    pipe = subprocess.PIPE
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdin=pipe, stdout=pipe, text=True)
    assert writer.stdout.readline() == "written\n"
    return writer


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "model.fastrnn"
    path.write_bytes(b"old")
    writers = [start_writer(path) for _ in range(3)]
    assert len(os.listdir(tmp_path)) == 4
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
        writer.stdin.close()
        writer.stdout.close()
    assert path.read_bytes() == b"old"
    replace_file(path, b"new")
    assert (os.listdir(tmp_path), path.read_bytes()) == (["model.fastrnn"], b"new")


def test_a_writer_that_lives_is_left_alone(tmp_path):
    path = tmp_path / "model.fastrnn"
    writer = start_writer(path)
    replace_file(path, b"mine")
    assert (path.read_bytes(), len(os.listdir(tmp_path))) == (b"mine", 2)
    writer.communicate("", timeout=30)
    assert (os.listdir(tmp_path), path.read_bytes()) == (["model.fastrnn"], b"half")


def test_many_writers_at_once(tmp_path):
    path, stop, torn = tmp_path / "file", time.monotonic() + 0.5, []

    def write(k):
        while time.monotonic() < stop:
            replace_file(path, [bytes([k]) * 5000] * 3)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(WRITERS + 3)]
    for thread in threads:
        thread.start()
    while time.monotonic() < stop:
        if path.exists() and (len(data := path.read_bytes()) != 15000 or len(set(data)) != 1):
            torn.append(data)
    for thread in threads:
        thread.join()
    assert torn == []
    assert os.listdir(tmp_path) == ["file"]


def test_a_pipe_with_the_name_of_a_temporary_file_holds_no_one_up(tmp_path):
    os.mkfifo(tmp_path / ".file.0.partial")
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def chunks():
        yield b"half"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        replace_file(path, chunks())
    assert (os.listdir(tmp_path), path.read_bytes()) == (["file"], b"old")


def test_a_name_as_long_as_the_file_system_takes(tmp_path):
    path = tmp_path / ("ä" * 127)
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("place", "error"),
    [(".", IsADirectoryError), ("no/file", FileNotFoundError), ("file/more", NotADirectoryError)],
)
def test_places_that_can_not_be_written(tmp_path, place, error):
    (tmp_path / "file").write_bytes(b"")
    for function in (check_place, lambda path: replace_file(path, b"")):
        with pytest.raises(error):
            function(tmp_path / place)
    assert os.listdir(tmp_path) == ["file"]
