"""The C functions from other extension modules, built against the installed cbn."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cbn

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = Path(cbn.get_include())
EXAMPLE = ROOT / "examples" / "cython_extension"

on_posix = pytest.mark.skipif(os.name == "nt", reason="cc and c++ are not the compilers there")

PLAIN_SETUP = """
from setuptools import Extension, setup
import cbn
flags = ["-Wall", "-Wextra", "-Werror"]
plain = Extension("plain", ["plain.c"], include_dirs=[cbn.get_include()], extra_compile_args=flags)
setup(name="plain", ext_modules=[plain])
"""


def text(name):
    return (INCLUDE / name).read_text(encoding="utf-8")


def functions(header):
    code = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    return set(re.findall(r"^(?:const )?\w+ \*?(cbn_\w+)\(", code, flags=re.MULTILINE))


def python(folder, *arguments):
    command = [sys.executable, *arguments]
    env = os.environ | {"CFLAGS": "-O0"}
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def build(folder):
    python(folder, "setup.py", "-q", "build_ext", "--inplace")


@pytest.fixture(scope="module")
def standardize(tmp_path_factory):
    """The folder of the example, built."""
    pytest.importorskip("Cython", reason="cython is not installed: pip install --group test")
    folder = tmp_path_factory.mktemp("cython") / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("*.c", "*.so", "build"))
    build(folder)
    return folder


def test_the_headers_are_installed_and_those_of_the_library():
    assert {path.name for path in INCLUDE.iterdir()} >= {"cbn.h", "cbn_api.h"}
    assert text("cbn.h") == (ROOT / "src_c" / "cbn.h").read_text(encoding="utf-8")


def test_every_function_is_offered():
    declared = functions(text("cbn.h"))
    assert len(declared) > 20
    assert declared == set(re.findall(r"#define (cbn_\w+) \(cbn_imported->", text("cbn_api.h")))
    mirror = (INCLUDE.parent / "cbn_c.pxd").read_text(encoding="utf-8")
    assert set(re.findall(r"\b(cbn_\w+)\(", mirror)) == declared


@on_posix
@pytest.mark.parametrize(
    "compiler, flags", [("cc", ["-xc", "-std=c11"]), ("c++", ["-xc++", "-std=c++11"])]
)
def test_the_header_stands_alone(tmp_path, compiler, flags):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    program = tmp_path / "program"
    program.write_text("#include <cbn.h>\nint main() { return cbn_isa_name(0) == 0; }\n")
    flags = [*flags, "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"]
    subprocess.run([compiler, *flags, "-I", INCLUDE, program], check=True)


@pytest.mark.slow
def test_the_cython_example(standardize):
    out = python(
        standardize,
        "-c",
        """
import numpy as np, cbn, standardize
x = np.random.default_rng(0).normal(5, 3, (3000, 33)).astype(np.float32)
y, cache = cbn.batch_norm_forward(x)
for threads in (1, 2):
    copy = x.copy()
    mean, var = standardize.standardize(copy, threads=threads)
    assert copy.tobytes() == y.tobytes()
    assert np.array_equal(mean, cache.mean) and np.array_equal(var, cache.var)
try:
    standardize.standardize(x.copy(), eps=-1.0)
except RuntimeError as error:
    print(error)
""",
    )
    assert "eps" in out


def test_an_extension_in_c(tmp_path):
    shutil.copy(ROOT / "tests" / "c_api" / "plain.c", tmp_path)
    (tmp_path / "setup.py").write_text(PLAIN_SETUP)
    build(tmp_path)
    code = """
import plain, struct
print(plain.means(struct.pack("6d", 1, 10, 3, 30, 8, 80), 3, 2))
try:
    plain.means(b"", 0, 2)
except RuntimeError as error:
    print("error:", error)
"""
    first, second = python(tmp_path, "-c", code).splitlines()
    assert first == "[4.0, 40.0]"
    assert second.startswith("error:")


@pytest.mark.slow
def test_an_extension_for_another_version_does_not_import(tmp_path):
    shutil.copy(ROOT / "tests" / "c_api" / "plain.c", tmp_path)
    shutil.copytree(INCLUDE, tmp_path / "include")
    header = text("cbn_api.h").replace("#define CBN_API_VERSION 1", "#define CBN_API_VERSION 2")
    assert header != text("cbn_api.h")
    (tmp_path / "include" / "cbn_api.h").write_text(header, encoding="utf-8")
    (tmp_path / "setup.py").write_text(PLAIN_SETUP.replace("cbn.get_include()", '"include"'))
    build(tmp_path)
    command = [sys.executable, "-c", "import plain"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "ImportError: compiled for version 2" in run.stderr
    assert "the installed cbn has version 1" in run.stderr
