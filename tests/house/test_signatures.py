"""What an IDE and a type checker see: signatures, annotations, docstrings."""

from __future__ import annotations

import inspect
import typing
from importlib import import_module

import pytest

import cbn

MODULES = ["cbn", "cbn.fold", "cbn.interop.cs231n", "cbn.interop.onnx"]
OPTIONAL = ["cbn.gradcheck", "cbn.interop.autograd", "cbn.interop.jax", "cbn.interop.sklearn"]


def public(module):
    """Functions, classes and methods of a module that are its users' own."""
    listed = getattr(module, "__all__", None) or vars(module)
    for name in listed:
        value = getattr(module, name)
        if name.startswith("_") or inspect.ismodule(value):
            continue
        if not callable(value) or getattr(value, "__module__", "").split(".")[0] != "cbn":
            continue
        yield f"{module.__name__}.{name}", value
        if inspect.isclass(value):
            for method, function in vars(value).items():
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{module.__name__}.{name}.{method}", function


EVERY = [pair for name in MODULES for pair in public(import_module(name))]


@pytest.mark.parametrize("function", [pair[1] for pair in EVERY], ids=[pair[0] for pair in EVERY])
def test_signature_annotations_and_docstring(function):
    check(function)


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_needs_other_packages(name):
    try:
        module = import_module(name)
    except ImportError as error:
        pytest.skip(str(error))
    found = list(public(module))
    assert found
    for _, function in found:
        check(function)


def check(function):
    signature = inspect.signature(function)
    assert inspect.getdoc(function)
    if inspect.isclass(function):
        function = function.__init__
    annotated = getattr(function, "__annotations__", {})
    for name, parameter in signature.parameters.items():
        kinds = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if name != "self" and name != "cls" and parameter.kind not in kinds:
            assert annotated == {} or name in annotated or inspect.isclass(function), name


def test_the_compiled_module_has_signatures():
    from cbn import _core

    for name, function in vars(_core).items():
        if callable(function) and not name.startswith("_"):
            assert inspect.signature(function).parameters is not None


def test_there_is_something_to_look_at():
    assert len(EVERY) > 50
    assert {name for name in cbn.__all__ if name not in dir(cbn)} == set()


def test_annotations_can_be_evaluated():
    for function in (cbn.batch_norm_forward, cbn.batch_norm_backward, cbn.BatchNorm.__init__):
        assert typing.get_type_hints(function)
