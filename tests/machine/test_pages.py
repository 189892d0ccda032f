"""Pages of mapped files: what is given back stays readable, and digests tell contents apart without reading them."""

import numpy as np
import pytest

from fastrnn.machine import container, pages

pytestmark = pytest.mark.any_isa


@pytest.fixture
def mapped(tmp_path):
    """Two tensors of a mapped file, of 1 MiB each, and copies of them in other memory."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.random((512, 512), np.float32) for name in "ab"}
    (tmp_path / "file").write_bytes(container.join(container.chunks(arrays, {})))
    return container.map_file(tmp_path / "file").tensors, arrays


def resident(array) -> int:
    """KiB of the map that holds the array that are this process's."""
    address, at = array.ctypes.data, None
    with open("/proc/self/smaps") as lines:
        for line in lines:
            first = line.split()[0]
            if "-" in first:
                begin, end = (int(text, 16) for text in first.split("-"))
                at = begin <= address < end
            elif at and first == "Rss:":
                return int(line.split()[1])
    raise AssertionError("not mapped")


def test_pages_that_are_given_back_are_no_memory_and_read_the_same(mapped):
    found, want = mapped
    assert found["a"].sum() == want["a"].sum()
    assert resident(found["a"]) >= 1024
    pages.give_back(found["a"], None, want["a"], found["a"][:0])
    assert resident(found["a"]) < 1024
    np.testing.assert_array_equal(found["a"], want["a"])


def test_a_view_is_given_back_with_its_array(mapped):
    found, want = mapped
    view = found["b"][::-2, 3:].T
    assert view.sum() == want["b"][::-2, 3:].T.sum()
    pages.give_back(view)
    assert resident(view) < 1024
    np.testing.assert_array_equal(view, want["b"][::-2, 3:].T)


def test_an_array_is_read_in_pieces_that_do_not_stay(mapped):
    found, want = mapped
    assert b"".join(bytes(piece) for piece in pages.read(found["a"])) == want["a"].tobytes()
    assert resident(found["a"]) < 1024
    for array in (np.float32(3), np.zeros((0, 4)), np.arange(12).reshape(3, 4).T, np.array([True, False])):
        assert b"".join(bytes(piece) for piece in pages.read(np.asarray(array))) == np.asarray(array).tobytes()


def test_only_maps_of_our_own_are_given_back(mapped):
    """A private, writable map would lose what was written to it."""
    assert pages.mapping_of(mapped[0]["a"]) is not None
    assert pages.mapping_of(mapped[0]["a"][1:, ::2].T) is not None
    assert pages.mapping_of(mapped[1]["a"]) is None
    assert pages.mapping_of(np.frombuffer(b"12345678", np.uint8)) is None


def test_the_content_of_a_sealed_array_is_that_of_its_seal(mapped):
    found, want = mapped
    for array in (found["a"], want["a"]):  # without seals, of the elements
        assert pages.content(array) == pages.content(want["a"]) != pages.content(found["b"])
    pages.seal(found["a"], b"first")
    pages.seal(found["b"], b"second")
    pages.seal(want["a"], b"no mapped file: ignored")
    views = [found["a"], found["b"], found["a"][:256], found["a"][256:], found["a"].T, found["b"][:256]]
    views += [found["a"].reshape(256, 1024), found["a"].view(np.int32), found["a"][:, ::2], found["a"][::-1]]
    pages.give_back(found["a"])
    digests = [pages.content(view) for view in views]
    assert len(set(digests)) == len(views)
    assert resident(found["a"]) < 1024  # not read
    assert digests == [pages.content(view) for view in views]
    assert pages.content(want["a"]) == pages.content(want["a"].copy())


def test_what_reaches_over_two_sealed_arrays_is_read(mapped):
    found, _ = mapped
    pages.seal(found["a"], b"first")
    pages.seal(found["b"], b"second")
    whole = np.frombuffer(pages.mapping_of(found["a"]), np.uint8)
    assert pages.content(whole) == pages.content(whole.copy())
