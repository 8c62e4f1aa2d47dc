"""Every `raise` in cbn has an example that reaches it, and a text of one form.

The text names the argument, what was expected and what was given: "name: expected ..., got ...".
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
from error_examples import EXAMPLES

import cbn

ROOT = Path(cbn.__file__).parent
FORM = re.compile(r"[\w .=-]+: expected .+, got .+", flags=re.DOTALL)

# What others have said first, what only a command says, and what is no mistake of the caller's.
OTHER_FORMS = [
    r"Expected more than 1 value per channel when training, got input size .*",  # PyTorch's
    r'Invalid forward batchnorm mode ".*"',  # the course's
    r"(activation|residual): expected None with out=x, since backward works from y then",
    r"sample_weight: expected finite values >= 0, got others",
    r".* is not installed.*",
    r"(\S+: )?not enough memory.*",
    r"--\w+: cannot (read|write) '.*': .*",
    r"oneDNN: \w+ returns status \d+",
    r"expected .+, got .+",  # argparse names the option
    r"expected a \.npy file",  # part of a longer text
    r"x: channel \d+ is constant and eps is 0, where batch norm has no derivative",
    r"2",  # the exit status, after the text
]


# Modules whose texts are looked at where other packages, files or processes are at hand.
ELSEWHERE = {
    "_built.py": "test_packaging.py",
    "cli/_sinks.py": "test_normalize_command.py",
    "cli/_sources.py": "test_normalize_command.py",
    "cli/normalize.py": "test_normalize_command.py",
    "distributed/dask.py": "test_dask.py",
    "distributed/mpi.py": "test_mpi.py",
    "interop/_extra.py": "test_packaging.py",
    "interop/autograd.py": "test_autograd.py",
    "interop/jax.py": "test_jax.py",
    "interop/onnx.py": "test_onnx_interop.py",
    "interop/sklearn.py": "test_sklearn.py",
    "interop/torch/__init__.py": "test_packaging.py",
    "interop/torch/_check.py": "test_interop_torch.py",
    "interop/torch/_operators.py": "test_interop_torch_operators.py",
    "interop/torch/conversion.py": "test_interop_torch_conversion.py",
    "interop/torch/sync.py": "test_interop_torch_sync.py",
}


@functools.cache
def raises():
    """File and lines of every raise statement with an exception, but for abstract methods."""
    return {
        (path, node.lineno, node.end_lineno)
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in ELSEWHERE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise)
        and node.exc is not None
        and getattr(node.exc, "id", None) != "NotImplementedError"
    }


def site(error):
    """The raise statements that an exception went through: its own, and those that raised it on."""
    found = set()
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            found.add((Path(trace.tb_frame.f_code.co_filename), trace.tb_lineno))
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return found


@pytest.fixture
def error_of(monkeypatch, tmp_path):
    def error_of(name):
        with monkeypatch.context() as patch, pytest.raises((Exception, SystemExit)) as caught:
            patch.chdir(tmp_path)
            EXAMPLES[name](patch)
        return caught

    return error_of


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_text_of(name, error_of):
    caught = error_of(name)
    assert not isinstance(caught.value, AssertionError | AttributeError | NameError)
    text = str(caught.value)
    assert FORM.fullmatch(text) or any(
        re.fullmatch(other, text, flags=re.DOTALL) for other in OTHER_FORMS
    ), text


def test_every_raise_has_an_example(error_of):
    """A new one needs an entry in error_examples.py."""
    sites = set().union(*(site(error_of(name).value) for name in EXAMPLES))
    reached = {
        (path, first, last)
        for path, first, last in raises()
        if any((path, line) in sites for line in range(first, last + 1))
    }
    missing = sorted(raises() - reached)
    shown = [
        f"{path}:{line}: {path.read_text().splitlines()[line - 1]}" for path, line, _ in missing
    ]
    assert not missing, "\n".join(shown)


@pytest.mark.parametrize("module", ELSEWHERE)
def test_texts_elsewhere(module):
    """Those modules exist, and their tests look at the texts of errors."""
    assert (ROOT / module).exists()
    (path,) = Path(__file__).parents[1].rglob(ELSEWHERE[module])
    tests = path.read_text(encoding="utf-8")
    assert re.search(r"match=|errors? ==|in errors|in run\.stderr|str\(caught", tests)


def test_the_compiled_module_raises_nothing_that_a_caller_causes():
    """Beside MemoryError only what says that the library is wrong."""
    for name in ("_core.pyx", "_plain.pxi"):
        path = Path(__file__).resolve().parents[2] / "cbn" / name
        for raised in re.findall(r"^\s*raise (\w+)\((.*)", path.read_text(encoding="utf-8"), re.M):
            assert raised[0] == "MemoryError" or (
                raised[0] == "RuntimeError" and '"cbn: ' in raised[1]
            ), raised
