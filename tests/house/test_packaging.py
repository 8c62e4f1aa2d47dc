"""What is installed beside the code: metadata, stubs, build facts; and builds that cannot work."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module, metadata, resources
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from cases import slow_if
from tiers import tiers_of

import cbn
from cbn._build_config import CONFIG

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}


def test_a_folder_that_is_not_built_says_so(tmp_path, run_python):
    shutil.copytree(ROOT / "cbn", tmp_path / "cbn", ignore=shutil.ignore_patterns("_core.*"))
    run = run_python("-c", "import cbn", PYTHONPATH=str(tmp_path))
    assert run.returncode == 1
    error = run.stderr.splitlines()[-1]
    assert error.startswith(f"ImportError: {tmp_path / 'cbn'} has no compiled part for Python 3.")
    assert "pip install -e ." in error


def test_version_is_the_same_everywhere():
    source = (ROOT / "cbn" / "_version.py").read_text(encoding="utf-8")
    assert cbn.__version__ == metadata.version("cbn") == ast.literal_eval(source.split("=")[-1])
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, flags=re.MULTILINE) == [cbn.__version__]


def test_metadata():
    found = metadata.metadata("cbn")
    assert found["License-Expression"] == "BSD-3-Clause"
    assert found["Requires-Python"] == ">=3.11"
    assert set(found.get_all("Provides-Extra")) == set(
        PYPROJECT["project"]["optional-dependencies"]
    )
    always = [text for text in metadata.requires("cbn") if "extra ==" not in text]
    assert always == ["numpy>=2.0"]


def test_the_command_is_installed():
    (command,) = metadata.entry_points(group="console_scripts", name="cbn")
    assert command.value == "cbn.cli:main"
    assert callable(command.load())


@pytest.mark.parametrize(
    "name", ["py.typed", "_core.pyi", "_build_config.py", "c_api.pxd", "cbn_c.pxd"]
)
def test_installed_files(name):
    assert (resources.files("cbn") / name).is_file()


def test_every_package_is_listed_and_imports():
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    folders = sorted((ROOT / "cbn").rglob("__init__.py"))
    found = [".".join(path.parent.relative_to(ROOT).parts) for path in folders]
    assert sorted(listed) == sorted(found)
    for name in listed:
        if name != "cbn.interop.torch" or find_spec("torch"):
            import_module(name)


def test_the_test_group_can_run_the_demo():
    demo = PYPROJECT["project"]["optional-dependencies"]["demo"]
    assert set(demo) <= set(PYPROJECT["dependency-groups"]["test"])


def test_the_interop_group_is_the_extras_of_the_bridges():
    extras = PYPROJECT["project"]["optional-dependencies"]
    group = PYPROJECT["dependency-groups"]["interop"]
    for name in ("autograd", "jax", "onnx", "sklearn"):
        assert set(extras[name]) <= set(group)


@pytest.mark.parametrize("name", slow_if("jax".__ne__, ["autograd", "jax", "sklearn"]))
def test_a_missing_package_names_the_extra(run_python, name):
    code = f"import sys; sys.modules[{name!r}] = None; import cbn.interop.{name}"
    run = run_python("-c", code)
    assert f'pip install "cbn[{name}]"' in run.stderr
    assert run_python("-c", f"import cbn, sys; assert {name!r} not in sys.modules").returncode == 0


def test_linters_are_pinned():
    assert all("==" in requirement for requirement in PYPROJECT["dependency-groups"]["lint"])


def test_build_config():
    assert re.search(r"\d+\.\d+", CONFIG["compiler"]["version"])
    assert CONFIG["openmp"]["enabled"] is bool(CONFIG["openmp"]["flags"])
    assert next(iter(CONFIG["isa_flags"])) == "baseline"
    assert CONFIG["isa_flags"]["baseline"] == CONFIG["isa_left_out"] == []
    assert list(CONFIG["isa_flags"]) == tiers_of(CONFIG["machine"])
    for slower, faster in pairwise(CONFIG["isa_flags"].values()):
        assert set(slower) <= set(faster)


def workflows() -> dict[str, str]:
    folder = ROOT / ".github" / "workflows"
    if not folder.is_dir():
        pytest.skip("an sdist has no workflows")
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.yml")}


def test_actions_are_pinned_by_hash():
    uses = [line for text in workflows().values() for line in re.findall(r"uses: (.*)", text)]
    assert len(uses) > 8
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use) for use in uses)


def test_only_the_publishing_job_may_ask_for_an_identity():
    texts = workflows()
    assert not any("id-token" in text for name, text in texts.items() if name != "wheels.yml")
    before, publish = texts["wheels.yml"].split("\n  publish:\n")
    assert "id-token: write" in publish and "id-token" not in before
    assert "secrets." not in "".join(texts.values())


def test_wheels_are_built_for_every_python_of_the_classifiers():
    project, wheels = PYPROJECT["project"], PYPROJECT["tool"]["cibuildwheel"]
    versions = re.findall(r"Python :: 3\.(\d+)", "\n".join(project["classifiers"]))
    assert {f"cp3{version}-*" for version in versions} <= set(wheels["build"])
    assert all((ROOT / source).exists() for source in wheels["test-sources"])
    assert wheels["macos"]["environment"] == {"CBN_NO_OPENMP": "1"}


def test_the_licence_of_the_bundled_runtime_is_installed():
    files = [str(path) for path in metadata.files("cbn") or []]
    text = (ROOT / "licenses" / "libgomp.txt").read_text(encoding="utf-8")
    assert any(name.endswith("licenses/libgomp.txt") for name in files)
    assert "GCC RUNTIME LIBRARY EXCEPTION" in text and "GNU GENERAL PUBLIC LICENSE" in text


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Compile into `folder`, leaving the source folder alone."""
    arguments = ["-q", "build_ext", "--build-lib", folder / "lib", "--build-temp", folder / "temp"]
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=ROOT,
        env=os.environ | {"CIBUILDWHEEL": "0", "CBN_OBJECTS": str(folder / "kept")} | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def without_openmp(tmp_path):
    """A compiler that refuses OpenMP, and does not optimize so as to be done soon."""
    compiler = tmp_path / "serial-cc"
    compiler.write_text(
        '#!/bin/sh\ncase " $* " in *" -fopenmp "*) exit 1;; esac\nexec cc "$@" -O0\n'
    )
    compiler.chmod(0o755)
    return str(compiler)


on_posix = pytest.mark.skipif(os.name == "nt", reason="CC does not choose the compiler on Windows")


@on_posix
def test_a_missing_compiler_is_named_with_its_remedy(tmp_path):
    run = build(tmp_path, CC="no-such-compiler")
    assert run.returncode != 0
    assert "no working C compiler was found (tried: no-such-compiler)" in run.stderr
    assert "build-essential" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
@on_posix
def test_without_openmp_the_build_is_serial_and_says_so(tmp_path, without_openmp):
    # -O0 takes more stack than CBN_WERROR allows.
    run = build(tmp_path, CC=without_openmp, CBN_WERROR="", CBN_TIERS="baseline")
    assert run.returncode == 0, run.stderr
    assert "OpenMP does not work" in run.stderr
    assert "cbn will run on one thread" in run.stderr
    config = {}
    exec((tmp_path / "lib" / "cbn" / "_build_config.py").read_text(encoding="utf-8"), config)
    assert config["CONFIG"]["openmp"] == {"enabled": False, "flags": []}
    assert list(config["CONFIG"]["isa_flags"]) == ["baseline"]


@on_posix
def test_wheels_are_never_serial_by_accident(tmp_path, without_openmp):
    run = build(tmp_path, CC=without_openmp, CIBUILDWHEEL="1")
    assert run.returncode != 0
    assert "OpenMP does not work" in run.stderr and "CBN_NO_OPENMP=1" in run.stderr
    assert "Traceback" not in run.stderr
