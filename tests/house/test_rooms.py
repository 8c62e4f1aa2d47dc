"""The layout's rules: which line may stand in which file, and who may know of whom."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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
    SRC_C / "isa" / "tiers.toml",
    *sorted((ROOT / ".ci").iterdir()),
]

TESTS = ROOT / "tests"
TEST_FOLDERS = ("kernels", "functions", "layer", "bridges", "commands", "hazards", "house")
# Modules of cbn whose tests have another name, or are those of what they serve.
TESTED_AS = {
    "_arrays": "functional",
    "_built": "packaging",
    "_check": "bad_input",
    "_check_state": "bad_input",
    "_core": "plain_calls",
    "_mergeable": "mergeable",
    "_passes": "functional",
    "_self_check": "self_check",
    "_state": "state",
    "_statistics": "moments",
    "_version": "packaging",
    "__init__": "signatures",
    "__main__": "cli",
    "cache": "functional",
}

# Rooms of src_c and what each may include. A room is a folder or a file's stem.
C_ARROWS = {
    "cbn": set(),
    "compiler": set(),
    "status": {"cbn"},
    "batch_norm": {"steps", "operation", "cbn", "compiler"},
    "steps": {"operation", "channels", "kernels", "cbn", "compiler"},
    "operation": {
        *("access", "plan", "team", "layout", "channels", "dispatch", "kernels", "cbn", "compiler")
    },
    "access": {"layout", "kernels", "cbn", "compiler"},
    "team": {"plan", "cbn", "compiler"},
    "plan": {"kernels"},
    "layout": {"cbn", "compiler"},
    "channels": {"cbn", "compiler"},
    "dispatch": {"kernels", "cbn", "compiler"},
    "isa": {"kernels", "dtypes", "compiler"},
    "kernels": {"formulas", "isa", "dtypes", "cbn", "compiler"},
    "formulas": set(),
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
    """The verbs that the struct of function pointers lists after load and store."""
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
    assert kernels() == [
        *("moments", "normalize", "relu_backward", "backward_sums", "backward_dx", "scale")
    ]
    assert all(path.is_file() for path in BUILD_FILES)


def test_threads_are_divided_in_one_file():
    assert files_with(r"\bomp\s+parallel\b") == {"src_c/team.c"}


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


def test_every_kernel_has_a_file_and_a_test():
    code = "".join(without_comments(path) for path in (SRC_C / "kernels").glob("*.h"))
    for kernel in kernels():
        assert len(re.findall(rf"^static void {kernel}\(", code, flags=re.MULTILINE)) == 1
        assert (TESTS / "kernels" / f"test_{kernel}_kernel.py").is_file()


def test_every_module_has_a_test():
    names = {path.stem for path in TESTS.rglob("test_*.py")}
    modules = {path.stem for path in [*CBN.glob("*.py"), *CBN.glob("*.pyx")]} - {"_build_config"}
    missing = [name for name in modules if f"test_{TESTED_AS.get(name, name)}" not in names]
    assert not missing


def test_every_test_is_in_a_folder_and_its_name_tells_it_from_the_others():
    paths = sorted(TESTS.rglob("test_*.py"))
    assert {path.parent.name for path in paths} == set(TEST_FOLDERS)
    assert all(path.parent.parent == TESTS for path in paths)
    names = [path.name for path in paths]
    assert len(set(names)) == len(names)
    assert {path.name for path in TESTS.glob("*.py")} == {"conftest.py"}


def test_c_arrows_never_point_backwards():
    wrong = [
        f"{name_of(path)} includes {name_of(include)}"
        for path in C_FILES
        for include in local_includes(path)
        if not include.is_file() or c_room(include) not in C_ARROWS[c_room(path)] | {c_room(path)}
    ]
    assert not wrong


def test_python_arrows_never_point_backwards():
    wrong = {
        name_of(path): rooms
        for path in PYTHON_FILES
        for room in [python_room(path)]
        if (rooms := imported_rooms(path) - PYTHON_ARROWS[room] - {room})
    }
    assert not wrong


def is_guarded(path: Path) -> bool:
    guard = f"CBN_{path.stem.upper()}_H" if path.stem != "cbn" else "CBN_H"
    return bool(re.match(rf"\s*#ifndef {guard}\n#define {guard}\n", without_comments(path)))


def makes_a_unit(path: Path) -> bool:
    """Whether a header is included once, by a file of isa alone."""
    is_dtype = path.parent.name == "dtypes" and path.stem != "half"
    return is_dtype or path in {SRC_C / "kernels" / f"float{bits}.h" for bits in (32, 64)}


def test_headers_are_guarded_unless_they_make_a_unit():
    assert not [name_of(path) for path in HEADERS if is_guarded(path) is makes_a_unit(path)]


# Words of src_c/kernels, and the files whose concern they are: the contract, the provider and the
# sink; the loops and the table.
WORDS_OF = {
    r"\bhalf\b": {"kernels.h", "rows.h"},
    r"\baccess\b": {"kernels.h", "rows.h"},
    r"\bscattered\b": {"kernels.h", "rows.h"},
    r"stream": {"loops.h", "table.h"},
}


@pytest.mark.parametrize("word", WORDS_OF)
def test_a_concern_of_the_kernels_has_its_file(word):
    paths = (SRC_C / "kernels").rglob("*.h")
    found = {path.name for path in paths if re.search(word, without_comments(path))}
    assert found == WORDS_OF[word]


MACRO = re.compile(r"^#define (\w+)\(([\w, .]*)\)((?:.*\\\n)*.*)$", flags=re.MULTILINE)
C_WORDS = set(
    "const static extern inline void int double float char unsigned struct enum return if else for "
    "while sizeof NULL omp simd simdlen attribute always_inline noinline unused constructor "
    "uint16_t uint32_t uint64_t size_t ptrdiff_t".split()
)


def names_at_file_scope() -> set[str]:
    """Functions, types, constants, objects and macros of src_c."""
    text = "\n".join(without_comments(path) for path in C_FILES)
    names = set(re.findall(r"^#define (\w+)", text, flags=re.MULTILINE))
    names |= set(re.findall(r"^(?:\w+[ *]+)+(\w+)(?=\(|\[|;| =)", text, flags=re.MULTILINE))
    names |= set(re.findall(r"^\} (\w+);", text, flags=re.MULTILINE))
    for constants in re.findall(r"\benum(?:\s+\w+)?\s*\{(.*?)\}", text, flags=re.DOTALL):
        names |= set(re.findall(r"\b([a-zA-Z_]\w*)\b", constants))
    return names


def captured(parameters: str, body: str) -> set[str]:
    """Names in a macro's body that neither it nor any file declares: locals of whoever calls it."""
    code = re.sub(r'"[^"]*"|[.#]\s*\w+|\w+##\w+|##', " ", body)
    own = set(re.findall(r"\w+", parameters)) | set(re.findall(r"\w+ \**(\w+)(?= =|\))", code))
    own |= set(re.findall(r"(\w+) =", body))
    used = set(re.findall(r"\b[a-zA-Z_]\w*", code))
    return used - own - C_WORDS - names_at_file_scope()


def test_no_macro_reads_a_variable_of_its_caller():
    macros = [m for path in C_FILES for m in MACRO.findall(without_comments(path))]
    assert {"CBN_MAP", "CBN_REDUCTION", "CBN_TIER"} <= {name for name, _, _ in macros}
    caught = {name: found for name, args, body in macros if (found := captured(args, body))}
    assert not caught
    assert captured("to", "to[j] = tile.cols") == {"j", "tile"}


def arguments_of_macros(text: str):
    """What stands between the parentheses of each use of a macro of this project."""
    for use in re.finditer(r"\bCBN_[A-Z0-9_]+\(", text):
        depth, end = 1, use.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        yield text[use.end() : end - 1]


def test_no_statement_is_an_argument_of_a_macro():
    assert list(arguments_of_macros("CBN_ROWS(j, { f(j); })")) == ["j, { f(j); }"]
    found = {
        (name_of(path), argument)
        for path in C_FILES
        for argument in arguments_of_macros(without_comments(path))
        if re.search(r"[;{]", argument)
    }
    assert not found


def test_every_tag_of_a_decision_is_explained():
    """A comment of src_c that relies on a measurement names its row of docs/decisions.md."""
    comments = "".join(
        comment
        for path in C_FILES
        for comment in re.findall(r"/\*.*?\*/", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    )
    rows = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    tags = set(re.findall(r"\[([a-z][a-z0-9-]+)\]", comments))
    assert tags == set(re.findall(r"^\| `([a-z0-9-]+)` \|", rows, flags=re.MULTILINE))


def test_no_file_is_over_500_lines():
    lengths = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in CODE_FILES}
    assert not {name: length for name, length in lengths.items() if length > 500}


def files_that_say(pattern: str, paths: list[Path]) -> list[str]:
    return [name_of(p) for p in paths if re.search(pattern, p.read_text(encoding="utf-8"))]


def test_the_build_keeps_to_portable_strict_arithmetic():
    pattern = r"-Ofast|fast-math|/fp:fast|-m(arch|cpu|tune)=native"
    assert not files_that_say(pattern, BUILD_FILES)


def test_no_machine_path_is_written_down():
    pattern = r"(?<![\w.~}])/(home|root|Users|work|opt)/\w"
    assert not files_that_say(pattern, [*CODE_FILES, *BUILD_FILES])


@pytest.mark.parametrize("name", ["demo_command", "test_command"])
def test_ci_runs_the_commands_of_the_readme(name):
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (command,) = re.findall(rf"^{name}='(.+)'$", ci, flags=re.MULTILINE)
    assert f'eval "${name}"' in ci
    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
