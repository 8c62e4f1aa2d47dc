"""docs/adding.md is executed: its lists name the files that know an example, and no others."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from tiers import TIERS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")

# Where a dtype, a tier, an activation and a kernel have to be made known. The other tests, the
# examples and the changelog take what there is; a page of measurements tells what was measured.
SCOPE = (
    *("setup.py", "pyproject.toml", "MANIFEST.in", ".ci/*", "benchmarks/*.py", "src_c/**/*.toml"),
    *("src_c/**/*.[ch]", "cbn/**/*.py", "cbn/**/*.p[xy][dix]", "cbn/include/cbn_api.h"),
    *("tests/support/*.py", "tests/kernels/*.py", "tests/house/*.py", "tests/neon/*.c"),
    *("tests/fuzz/*.[ch]", "tests/fuzz/*.py"),
    *("README.md", "CONTRIBUTING.md", "docs/*.md", "docs/guide/*.md"),
)
OUTSIDE = {
    *("docs/adding.md", "tests/house/test_adding.py", "cbn/_build_config.py"),
    *("docs/decisions.md", "docs/performance.md", "docs/reliability.md"),
}

# Files that mention an example and need no line for another of its kind.
EXCUSED = {
    ".ci/sanitize": "it goes around a bug of gcc on one CPU, and its tests are a sample",
    ".ci/uncovered.py": "its docstring shows a comment",
    "docs/guide/training.md": "its layer has an activation, as some layers have",
    "docs/onnx.md": "ONNX says which dtypes there are",
    "tests/support/error_examples.py": "a text needs one tier, an error one activation",
    "tests/support/mpi_cases.py": "its cases have an activation, as some layers have",
}


class Recipe(NamedTuple):
    """A section of the page, what it is tried with, and what its placeholders stand for."""

    section: str
    words: str
    placeholders: dict[str, list[str]]


RECIPES = {
    "bfloat16": Recipe("A dtype", "(?i:bfloat16|bf16)", {}),
    "float64": Recipe(
        "A dtype with arithmetic of its own",
        "f64",
        {"NAME": ["f64"], "TYPE": ["float64"], "TIER": list(TIERS)},
    ),
    "avx2": Recipe("An ISA tier", "(?i:avx2|fma|f16c)", {"NAME": ["avx2"]}),
    "avx512": Recipe("An ISA tier", "(?i:avx-?512[a-z]*)", {"NAME": ["avx512"]}),
    "relu": Recipe("An activation", "relu|RELU", {"NAME": ["relu"]}),
    "backward": Recipe(
        "A kernel",
        "backward_dx|BACKWARD_DX|input_gradient|backward_sums",
        {"NAME": ["backward_dx", "backward_sums"]},
    ),
}
recipes = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)


@cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def files() -> list[str]:
    paths = {path for pattern in SCOPE for path in ROOT.glob(pattern) if path.is_file()}
    return sorted({path.relative_to(ROOT).as_posix() for path in paths} - OUTSIDE)


@cache
def code_of(name: str) -> str:
    """A file's name and what it says, without comments; docstrings are seen by users."""
    text = text_of(name)
    if name.endswith((".c", ".h")):
        text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    elif not name.endswith(".md"):
        text = re.sub(r"(?:^|\s)#\s.*", "", text)
    return f"{name}\n{text}"


def knows(name: str, words: str) -> bool:
    return bool(re.search(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])", code_of(name)))


def paths_in(text: str) -> list[str]:
    return re.findall(r"`([\w.-]+(?:/[\w.-]+)+|\w+\.(?:[ch]|py|pyx|pxd|pxi|pyi|toml|md))`", text)


def listed(recipe: Recipe) -> set[str]:
    """The files that the numbered list of a section names."""
    _, _, rest = PAGE.partition(f"# {recipe.section}\n")
    section = re.split(r"^#", rest, flags=re.MULTILINE)[0]
    items = re.findall(r"^\d+\. .*\n(?: +.*\n)*", section, flags=re.MULTILINE)
    names = set(paths_in("".join(items)))
    for word, values in recipe.placeholders.items():
        names = {name.replace(word, value) for name in names for value in values}
    return names


@recipes
def test_a_file_that_knows_the_example_is_listed(recipe):
    known = {name for name in files() if knows(name, recipe.words)}
    assert len(known) > 5
    assert not known - set(EXCUSED) - listed(recipe)


@recipes
def test_a_file_that_is_listed_knows_the_example(recipe):
    ignorant = [name for name in listed(recipe) if not knows(name, recipe.words)]
    assert not ignorant


def test_an_excuse_is_needed():
    words = "|".join(recipe.words for recipe in RECIPES.values())
    assert all(name in files() and knows(name, words) for name in EXCUSED)


def test_every_file_of_the_page_exists():
    places = {name for name in paths_in(PAGE) if not name.startswith(".github/")}
    missing = [name for name in places if not list(ROOT.glob(re.sub("NAME|TYPE|TIER", "*", name)))]
    assert not missing


def test_the_flags_of_a_tier_are_written_once():
    flags = {flag for tier in TIERS.values() for flag in (*tier["gnu"], *tier["msvc"])}
    assert len(flags) > 5
    pattern = "|".join(map(re.escape, flags))
    assert [name for name in files() if re.search(pattern, text_of(name))] == [
        "src_c/isa/tiers.toml"
    ]
