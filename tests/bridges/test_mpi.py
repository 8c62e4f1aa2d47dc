"""cbn/distributed/mpi.py: real ranks under mpiexec against one process with the whole batch."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import same_bytes, within
from mpi_cases import UNEQUAL, WHOLE, rows_of, whole
from tolerances import u, var_bound

import cbn

if importlib.util.find_spec("mpi4py") is None:
    pytest.skip("mpi4py is not installed: pip install --group mpi", allow_module_level=True)
MPIEXEC = shutil.which("mpiexec", path=Path(sys.executable).parent) or shutil.which("mpiexec")
if MPIEXEC is None:
    pytest.skip("there is no mpiexec: pip install --group mpi", allow_module_level=True)

SUPPORT = Path(__file__).resolve().parents[1] / "support"
# Open MPI counts cores and users.
OPENMPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def mpiexec(ranks, *arguments):
    command = [MPIEXEC, "-n", str(ranks), sys.executable, "-P", "-m", "mpi4py", *arguments]
    environment = os.environ | OPENMPI | {"PYTHONPATH": str(SUPPORT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def ranks(request, tmp_path_factory):
    """What each rank has found, by case."""
    folder = tmp_path_factory.mktemp("mpi")
    done = mpiexec(request.param, str(SUPPORT / "mpi_cases.py"), str(folder))
    assert done.returncode == 0, done.stderr
    found = {}
    for path in folder.iterdir():
        case, rank, _ = path.name.split(".")
        with np.load(path) as arrays:
            found.setdefault(case.removeprefix("case_"), {})[int(rank)] = dict(arrays)
    return {case: [of[rank] for rank in range(request.param)] for case, of in found.items()}


@pytest.mark.parametrize("name", WHOLE)
def test_ranks_together_are_the_whole_batch(ranks, name):
    found = ranks["whole"]
    dtype = WHOLE[name][1]
    x, dy, gamma, beta, options = whole(name)
    parts = rows_of(len(found), len(x), WHOLE[name][2])
    y, cache = cbn.batch_norm_forward(x, gamma, beta, axis=1, **options)
    names = "y", "dx", "dgamma", "dbeta", "dresidual"
    right = (y, *cbn.batch_norm_backward(dy, cache))
    for key, whole_array in zip(names, right, strict=False):
        arrays = [of_rank[f"{name}/{key}/0"] for of_rank in found]
        if whole_array.ndim == 1:
            for array in arrays[1:]:
                same_bytes(array, arrays[0])
            actual, terms = arrays[0], np.abs(dy).sum()
        else:
            for array, part in zip(arrays, parts, strict=True):
                assert array.shape == whole_array[part].shape
            actual, terms = np.concatenate(arrays), np.abs(whole_array).max()
        assert actual.dtype == whole_array.dtype
        atol = 64 * u(dtype) * float(terms)
        np.testing.assert_allclose(actual.astype(float), whole_array.astype(float), 0, atol)
    for of_rank in found:
        assert of_rank[f"{name}/count/0"] == cache.count
        within(of_rank[f"{name}/var/0"], cache.var, 2 * var_bound(dtype, cache.var))


def test_every_rank_has_the_same_statistics_and_every_run(ranks):
    first = ranks["whole"][0]
    for of_rank in ranks["whole"]:
        for key, array in of_rank.items():
            name, what, run = key.split("/")
            same_bytes(array, of_rank[f"{name}/{what}/0"])
            if what in ("mean", "var", "count", "dgamma", "dbeta"):
                same_bytes(array, first[f"{name}/{what}/{run}"])


def test_messages(ranks):
    for of_rank in ranks["messages"]:
        for channels, more in ((3, 0), (256, 0), (257, 1), (1000, 1)):
            bytes_of = {3 * 8: 24 * max(channels, 256) + 32, 4 * 8: 32 * max(channels, 256) + 32}
            forward, backward = bytes_of.values()
            agree = [6176] * more, [8224] * more
            assert of_rank[f"forward/{channels}"].tolist() == [*agree[0], forward]
            assert of_rank[f"backward/{channels}"].tolist() == [*agree[1], backward]
            assert of_rank[f"layer/{channels}"].tolist() == [forward, backward]


def test_a_mistake_of_one_rank_is_raised_on_all(ranks):
    texts = {
        "dtype": "TypeError: x: expected a real dtype",
        "not an array": "TypeError: x: expected a real dtype",
        "dimensions": "ValueError: x: expected at least 2 dimensions",
        "channels": "ValueError: x: expected as many channels on every rank, got",
        "gamma": "ValueError: gamma: expected shape (3,), got (4,)",
        "weight": "ValueError: sample_weight: expected finite values >= 0",
        "out": "ValueError: out: expected shape (5, 3), got (2,)",
        "dy": "ValueError: dy: expected shape (5, 3) as x, got (2, 3)",
        "cache": "TypeError: cache: expected the BatchNormCache",
    }
    errors = ranks["errors"]
    for name, text in texts.items():
        for culprit in range(len(errors)):
            for rank, of_rank in enumerate(errors):
                found = str(of_rank[f"{name}/{culprit}"])
                if rank != culprit and name != "channels":
                    prefix = f"RuntimeError: rank {culprit} of {len(errors)} has raised "
                    assert found.startswith(prefix)
                    found = found.removeprefix(prefix)
                assert found.startswith(text)
    for of_rank in errors:
        assert str(of_rank["no rows"]).startswith("ValueError: m: expected a count > 0")
        assert str(of_rank["comm"]).startswith("TypeError: comm: expected an mpi4py communicator")
        assert str(of_rank["renorm"]).startswith("ValueError: renorm: expected False")


def test_the_layer_is_that_of_the_whole_batch(ranks):
    found = ranks["layer"]
    x, dy, gamma, beta, _ = whole("float32")
    parts = rows_of(len(found), len(x), UNEQUAL)
    layer = cbn.BatchNorm(x.shape[1], momentum=0.3, dtype=np.float64)
    layer.gamma[:], layer.beta[:] = gamma, beta
    close = {"rtol": 1e-5, "atol": 64 * u(np.float32) * 10}
    for step in range(3):
        y, dx = layer((step + 1) * x), layer.backward(dy)
        for of_rank, part in zip(found, parts, strict=True):
            np.testing.assert_allclose(of_rank[f"y/{step}"], y[part], **close)
            np.testing.assert_allclose(of_rank[f"dx/{step}"], dx[part], **close)
            for name in ("dgamma", "dbeta"):
                actual, right = of_rank[f"{name}/{step}"], getattr(layer, name)
                np.testing.assert_allclose(actual, right, 1e-5, 64 * u(np.float32) * 300)
                same_bytes(actual, found[0][f"{name}/{step}"])
        layer.gamma -= 0.1 * layer.dgamma
        layer.beta -= 0.1 * layer.dbeta
    for of_rank in found:
        for name, right in layer.state_dict().items():
            actual = of_rank[f"state/{name}"]
            same_bytes(actual, found[0][f"state/{name}"])
            np.testing.assert_allclose(actual, right, **close)
        assert of_rank["untouched"]
    layer.eval()
    np.testing.assert_allclose(found[0]["eval/y"], layer(x), **close)
    np.testing.assert_allclose(found[0]["eval/dx"], layer.backward(dy), **close)
    mask = np.arange(len(x)) % 2 == 0
    np.testing.assert_allclose(found[0]["eval/mask"], layer(x, mask=mask), **close)
    assert not found[0]["eval/mask"][1::2].any()


def test_mistakes_in_the_layer(ranks):
    found = ranks["layer"]
    culprit = len(found) - 1
    for rank, of_rank in enumerate(found):
        for name, text in {
            "channels": "ValueError: x: expected 17 channels along axis 1, got 3",
            "None": "TypeError: x: expected a real dtype",
            "dy": "ValueError: dy: expected shape",
            "running_var": "ValueError: running_var: expected shape (3,), got (2,)",
        }.items():
            prefix = f"RuntimeError: rank {culprit} of {len(found)} has raised "
            actual = str(of_rank[f"error/{name}"])
            assert actual.startswith(text if rank == culprit else prefix + text)
        assert "Expected more than 1 value per channel" in str(of_rank["error/one value"])
        assert "backward: expected a call of the layer" in str(of_rank["error/backward first"])
        assert "x: expected a real dtype" in str(of_rank["wide/error"])


def test_without_mpi4py_the_error_names_the_extra(run_python):
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "import cbn, cbn.distributed\n"
        "try:\n    import cbn.distributed.mpi\nexcept ImportError as error:\n    print(error)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert 'pip install "cbn[mpi]"' in done.stdout
