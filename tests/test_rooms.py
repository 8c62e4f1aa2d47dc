"""The layout's rules: which line may stand in which file, and who may know of whom."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC_C = ROOT / "src_c"
CBN = ROOT / "cbn"

C_FILES = sorted(SRC_C.rglob("*.[ch]"))
HEADERS = [path for path in C_FILES if path.suffix == ".h"]
PYTHON_FILES = sorted(CBN.rglob("*.py"))
CODE_FILES = [
    ROOT / "setup.py",
    *C_FILES,
    *(
        path
        for folder in ("cbn", "tests", "benchmarks", "docs", "examples")
        for path in sorted((ROOT / folder).rglob("*.p*"))
        if path.suffix in {".py", ".pyx", ".pxi", ".pyi", ".pxd"}
        and path.name != "_build_config.py"
    ),
]
BUILD_FILES = [
    ROOT / "setup.py",
    ROOT / "pyproject.toml",
    ROOT / "MANIFEST.in",
    *sorted((ROOT / ".ci").iterdir()),
]

# Rooms of src_c and what each may include. A room is a folder or a file's stem.
C_ARROWS = {
    "cbn": set(),
    "compiler": set(),
    "status": {"cbn"},
    "batch_norm": {"steps", "operation", "cbn", "compiler"},
    "steps": {"operation", "channels", "kernels", "cbn", "compiler"},
    "operation": {"access", "work", "layout", "channels", "dispatch", "kernels", "cbn", "compiler"},
    "access": {"layout", "kernels", "cbn", "compiler"},
    "work": {"kernels", "cbn", "compiler"},
    "layout": {"cbn", "compiler"},
    "channels": {"cbn", "compiler"},
    "dispatch": {"kernels", "cbn", "compiler"},
    "isa": {"kernels", "dtypes", "compiler"},
    "kernels": {"dtypes", "cbn", "compiler"},
    "dtypes": {"compiler"},
}

# Rooms of cbn and what each may import; "" is the package itself, seen as a user sees it.
PYTHON_ARROWS = {
    "__init__": {
        *(
            "functional",
            "parts",
            "derivatives",
            "cache",
            "fold",
            "layer",
            "moments",
            "runtime",
            "_built",
            "_self_check",
            "_version",
        )
    },
    "__main__": {"cli"},
    "cli": {"", "gradcheck", "_version"},
    "interop": {
        *("", "functional", "derivatives", "cache", "layer", "moments", "runtime", "_arrays"),
        *("_check", "_check_state", "_core", "_mergeable", "parts"),
    },
    "distributed": {"parts", "layer", "moments", "cache", "_check", "_check_state"},
    "layer": {"functional", "derivatives", "moments", "_check", "_check_state", "_state"},
    "fold": {"_statistics", "_check", "_check_state"},
    "derivatives": {"_passes", "_statistics", "cache", "runtime", "_arrays", "_check", "_core"},
    "parts": {
        *("functional", "_passes", "moments", "cache", "runtime", "_arrays", "_check"),
        "_check_state",
    },
    "functional": {
        *("_passes", "cache", "runtime", "_arrays", "_check", "_core"),
    },
    "_passes": {"cache", "_statistics", "_arrays", "_check", "_core"},
    "moments": {
        *("_mergeable", "_passes", "_statistics", "_state", "cache", "runtime", "_check"),
        *("_check_state", "_core"),
    },
    "_mergeable": {"_check_state"},
    "cache": {"_core"},
    "runtime": {"_check", "_core", "_build_config", "_version"},
    "_self_check": {"", "reference"},
    "gradcheck": {"", "reference", "_check"},
    "reference": set(),
    "_arrays": {"_check"},
    "_check": set(),
    "_check_state": {"_check"},
    "_state": {"_core"},
    "_statistics": set(),
    "_built": {"_core"},
    "_core": set(),
    "_version": set(),
    "_build_config": set(),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_comments(path: Path) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def files_with(pattern: str) -> set[str]:
    """The files of src_c whose code, comments aside, matches."""
    return {name_of(path) for path in C_FILES if re.search(pattern, without_comments(path))}


def c_room(path: Path) -> str:
    return path.stem if path.parent == SRC_C else path.parent.name


def local_includes(path: Path) -> list[Path]:
    includes = re.findall(r'^\s*#\s*include\s+"(.+?)"', without_comments(path), flags=re.MULTILINE)
    return [(path.parent / name).resolve() for name in includes]


def kernels() -> list[str]:
    """The four verbs, as the struct of function pointers lists them after load and store."""
    text = without_comments(SRC_C / "kernels" / "kernels.h")
    offered = re.search(r"struct cbn_kernels \{(.*?)\n\};", text, flags=re.DOTALL)[1]
    load, store, *verbs = re.findall(r"\(\*(\w+)\)\(", offered)
    assert (load, store) == ("load", "store")
    return verbs


def imported_rooms(path: Path) -> set[str]:
    """The rooms of cbn that a module imports."""
    package = ["cbn", *path.relative_to(CBN).parts[:-1]]
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            modules = [module]
            if module == "cbn":  # `from cbn import reference` is a module, `... import x` a name
                modules = [f"cbn.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            first, _, rest = module.partition(".")
            if first == "cbn":
                room = rest.partition(".")[0]
                rooms.add(room if room in PYTHON_ARROWS else "")
    return rooms


def python_room(path: Path) -> str:
    relative = path.relative_to(CBN)
    return relative.parts[0] if len(relative.parts) > 1 else path.stem


def test_the_rules_have_files_to_look_at():
    assert len(C_FILES) > 10 and len(PYTHON_FILES) > 5
    assert kernels() == ["moments", "normalize", "backward_sums", "backward_dx"]
    assert all(path.is_file() for path in BUILD_FILES)


def test_threads_are_divided_in_one_file():
    assert files_with(r"\bomp\s+parallel\b") == {"src_c/work.c"}


def test_intrinsics_stand_under_isa():
    found = files_with(r"\b(\w*mmintrin|x86intrin|arm_neon)\.h\b|\b_mm\d*_\w+\(|\bv\w+q_[fsu]\d+\(")
    assert all(name.startswith("src_c/isa/") for name in found), found


def test_c_knows_no_python():
    assert not files_with(r"\bPython\.h\b")


def test_c_allocates_nothing():
    assert not files_with(r"\b(malloc|calloc|realloc|alloca|free)\s*\(")


def test_core_has_no_loops():
    for name in ("_core.pyx", "_plain.pxi", "_tensors.pxi"):
        text = (CBN / name).read_text(encoding="utf-8")
        code = re.sub(r'"""(.|\n)*?"""|#[^\n]*|f"[^"\n]*"', "", text)
        assert not re.search(r"\b(for|while)\s", code)


@pytest.mark.parametrize("kernel", kernels())
def test_every_kernel_has_a_file_and_a_test(kernel):
    assert (SRC_C / "kernels" / f"{kernel}.h").is_file()
    assert (ROOT / "tests" / f"test_{kernel}.py").is_file()


@pytest.mark.parametrize("path", C_FILES, ids=name_of)
def test_c_arrows_never_point_backwards(path):
    room = c_room(path)
    allowed = C_ARROWS[room] | {room}
    for include in local_includes(path):
        assert include.is_file(), include
        assert c_room(include) in allowed, f"{name_of(path)} includes {name_of(include)}"


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_python_arrows_never_point_backwards(path):
    room = python_room(path)
    assert imported_rooms(path) <= PYTHON_ARROWS[room] | {room}


@pytest.mark.parametrize("path", HEADERS, ids=name_of)
def test_headers_are_guarded_unless_written_to_be_repeated(path):
    instantiate = SRC_C / "kernels" / "instantiate.h"
    repeated = path == instantiate or local_includes(instantiate).count(path) > 1
    repeated = repeated or (path.parent.name == "dtypes" and path.stem != "half")
    guard = f"CBN_{path.stem.upper()}_H" if path.stem != "cbn" else "CBN_H"
    guarded = re.match(rf"\s*#ifndef {guard}\n#define {guard}\n", without_comments(path))
    assert bool(guarded) is not repeated


@pytest.mark.parametrize("path", CODE_FILES, ids=name_of)
def test_no_file_is_over_500_lines(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 500


@pytest.mark.parametrize("path", BUILD_FILES, ids=name_of)
def test_the_build_keeps_to_portable_strict_arithmetic(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"-Ofast|fast-math|/fp:fast|-m(arch|cpu|tune)=native", text)


@pytest.mark.parametrize("path", [*CODE_FILES, *BUILD_FILES], ids=name_of)
def test_no_machine_path_is_written_down(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.~}])/(home|root|Users|work|opt)/\w", text)


@pytest.mark.parametrize("name", ["demo_command", "test_command"])
def test_ci_runs_the_commands_of_the_readme(name):
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (command,) = re.findall(rf"^{name}='(.+)'$", ci, flags=re.MULTILINE)
    assert f'eval "${name}"' in ci
    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
