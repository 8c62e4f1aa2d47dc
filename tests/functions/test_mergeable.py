"""cbn/_mergeable.py: what Moments and BackwardSums share, and Moments.from_batches."""

from __future__ import annotations

import copy
import io
import operator
import pickle
from functools import reduce

import numpy as np
import pytest
from cases import generator, same_bytes, within
from tolerances import u, var_bound

import cbn

D = 7
KINDS = [cbn.Moments, cbn.BackwardSums]


def values(kind, number=1, key=0):
    rng = generator(kind.__name__, key)
    found = []
    for rows in rng.integers(1, 30, number):
        x, dy = rng.normal(1e6, 1, (2, rows, D))
        if kind is cbn.Moments:
            found.append(kind.from_batch(x))
        else:
            found.append(kind.from_batch(dy, cbn.batch_norm_forward(x)[1]))
    return found


def everything(value):
    return value.to_buffer().tobytes()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def test_plus_leaves_both_as_they_were(kind):
    a, b = values(kind, 2)
    before = everything(a), everything(b)
    total = a + b
    assert (everything(a), everything(b)) == before
    assert total == copy.copy(a).merge(b) and type(total) is kind
    a += b
    assert a == total
    with pytest.raises(TypeError, match="unsupported operand"):
        a + 1


def test_the_same_tree_has_the_same_bytes(kind):
    (a, b), (c, d) = values(kind, 2), values(kind, 2, key=1)
    trees = [(a + b) + (c + d) for _ in range(2)]
    assert everything(trees[0]) == everything(trees[1])
    assert everything(reduce(operator.add, [a, b, c, d])) == everything(((a + b) + c) + d)


def test_copies_have_every_bit(kind, tmp_path):
    (value,) = values(kind)
    value += values(kind, key=1)[0]  # so that the low parts have something
    value.save(tmp_path / "value.npz")
    memory = io.BytesIO()
    value.save(memory)
    memory.seek(0)
    twins = [
        pickle.loads(pickle.dumps(value)),
        copy.deepcopy(value),
        kind.from_buffer(value.to_buffer()),
        kind.load(tmp_path / "value.npz"),
        kind.load(memory),
        kind.concatenate([value.select(slice(3)), value.select([3, 4]), value.select(slice(5, D))]),
        value.select(np.ones(D, bool)),
    ]
    for twin in twins:
        assert type(twin) is kind and twin == value and everything(twin) == everything(value)
        assert type(twin.count) is int
        twin.merge(value)
        assert twin != value


def test_a_sum_of_weights_stays_a_float(tmp_path):
    m = cbn.Moments.from_batch(np.ones((2, D)), sample_weight=[0.25, 0.5])
    m.save(tmp_path / "m.npz")
    assert cbn.Moments.load(tmp_path / "m.npz").count == 0.75


def test_a_buffer_is_a_new_array(kind):
    (value,) = values(kind)
    buffer, before = value.to_buffer(), everything(value)
    assert buffer.shape == (1 + (3 if kind is cbn.Moments else 4) * D,)
    again = kind.from_buffer(buffer)
    buffer[:] = -1
    assert everything(value) == everything(again) == before


def test_no_channels(kind, tmp_path):
    empty = kind.from_buffer(np.array([3.0]))
    empty.merge(kind.from_buffer(np.array([2.0]))).save(tmp_path / "empty.npz")
    assert kind.load(tmp_path / "empty.npz").count == 5


def test_saved_arrays_are_plain(tmp_path):
    values(cbn.Moments)[0].save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as arrays:
        assert set(arrays) == {"count", "mean", "mean_low", "var"}
        np.savez(tmp_path / "own.npz", count=4, mean=np.float32([1, 2]), var=np.float32([3, 4]))
    m = cbn.Moments.load(tmp_path / "own.npz")
    assert m == cbn.Moments(4, [1.0, 2.0], [12.0, 16.0])


@pytest.mark.parametrize(
    ("arrays", "error", "text"),
    [
        ({"count": 3, "mean": [1.0]}, ValueError, "^file: expected .* none of the name var"),
        ({"count": 3, "mean": [1.0], "var": [-1.0]}, ValueError, "^var: expected values >= 0"),
        ({"count": -3, "mean": [1.0], "var": [1.0]}, ValueError, "^count: expected"),
        ({"count": "x", "mean": [1.0], "var": [1.0]}, TypeError, "^count: expected"),
        ({"count": [1, 2], "mean": [1.0], "var": [1.0]}, TypeError, "^count: expected"),
        ({"count": 3, "mean": [1.0], "var": [1.0, 2.0]}, ValueError, r"^var: expected shape \(1,"),
        ({"count": 3, "mean": [[1.0]], "var": [1.0]}, ValueError, r"^mean: expected shape \(D,"),
        ({"count": 3, "mean": np.array([None]), "var": [1.0]}, ValueError, "^file: expected"),
    ],
)
def test_bad_files(arrays, error, text, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(error, match=text):
        cbn.Moments.load(tmp_path / "bad.npz")


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "file.npz"
    for content in (b"", b"nonsense", b"PK\x03\x04nonsense", pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="^file: expected an .npz file of count"):
            cbn.Moments.load(path)
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(ValueError, match="^file: expected an .npz file of count"):
        cbn.Moments.load(tmp_path / "one.npy")
    values(cbn.Moments)[0].save(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="^file: expected"):
        cbn.Moments.load(path)
    with pytest.raises(FileNotFoundError):
        cbn.Moments.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("buffer", "error", "text"),
    [
        (np.ones(0), ValueError, "^buffer: expected shape"),
        (np.ones(3), ValueError, "^buffer: expected shape"),
        (np.ones((4, 1)), ValueError, "^buffer: expected shape"),
        (np.ones(4, np.float32), TypeError, "^buffer: expected float64, got float32"),
        (np.array([1.0, 1.0, 1.0, -1.0]), ValueError, "^var: expected values >= 0"),
        (np.array([np.nan, 1.0, 1.0, 1.0]), ValueError, "^count: expected"),
    ],
)
def test_bad_buffers(buffer, error, text):
    with pytest.raises(error, match=text):
        cbn.Moments.from_buffer(buffer)


def test_bad_parts(kind):
    (value,) = values(kind)
    with pytest.raises(ValueError, match="^parts: expected at least one"):
        kind.concatenate([])
    with pytest.raises(TypeError, match=f"^parts: expected {kind.__name__}, got int"):
        kind.concatenate([value, 3])
    with pytest.raises(ValueError, match="^parts: expected one count"):
        kind.concatenate([value, value + value])
    with pytest.raises(IndexError):
        value.select([D])


# Batches ------------------------------------------------------------------------------------------


def test_merge_all_leaves_the_parts_as_they_were(kind):
    for number in (1, 2, 3, 6):
        parts = values(kind, number)
        before = list(map(everything, parts))
        total = kind.merge_all(parts)
        assert total.count == sum(part.count for part in parts)
        total += parts[0]
        assert list(map(everything, parts)) == before
    with pytest.raises(TypeError, match=f"^parts: expected {kind.__name__}, got int"):
        kind.merge_all([3])
    with pytest.raises(ValueError, match="^parts: expected at least one"):
        kind.merge_all([])


@pytest.mark.parametrize("number", [1, 2, 3, 7, 8, 13])
def test_batches_are_merged_as_a_tree(number):
    x = generator("batches").normal(1e4, 1, (40 * number, 3))
    batches = np.split(x, number)
    m = cbn.Moments.from_batches(iter(batches))
    right = cbn.Moments.from_batch(x)
    assert m.count == len(x)
    within(m.var(), right.var(), var_bound(np.float64, right.var()))
    parts = [cbn.Moments.from_batch(batch) for batch in batches]

    def tree(parts):
        half = 1 << (len(parts) - 1).bit_length() - 1 if len(parts) > 1 else 0
        return tree(parts[:half]) + tree(parts[half:]) if half else parts[0]

    assert everything(m) == everything(tree(parts))


@pytest.mark.slow
def test_hundred_thousand_batches():
    rows = generator("many").normal(1e8, 1, (2048, 1))
    right = cbn.Moments.from_batch(rows)
    m = cbn.Moments.from_batches(rows[i % 2048][None] for i in range(2048 * 49))
    assert m.count == 2048 * 49
    assert abs(m.var()[0] / right.var()[0] - 1) <= 64 * u(np.float64)


def test_batches_of_images():
    images = generator("images").normal(size=(6, 3, 4, 5)).astype(np.float32)
    m = cbn.Moments.from_batches(np.split(images, 3), axis=1)
    right = cbn.Moments.from_batch(images, axis=1)
    within(m.var(), right.var(), var_bound(np.float32, right.var()))


def test_bad_batches():
    with pytest.raises(ValueError, match="^parts: expected at least one, got none"):
        cbn.Moments.from_batches([])
    with pytest.raises(ValueError, match="^other: expected 3 channels, got 2"):
        cbn.Moments.from_batches([np.ones((2, 3)), np.ones((2, 2))])
    with pytest.raises(TypeError, match="not iterable"):
        cbn.Moments.from_batches(3)


def test_merging_in_place_does_not_reach_others(kind):
    a, b = values(kind, 2)
    shared = kind._of(a.count, a._rows)
    before = everything(a)
    shared.merge(b)
    same_bytes(np.frombuffer(everything(a)), np.frombuffer(before))
