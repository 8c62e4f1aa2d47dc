"""Compile src_c and link it with cbn/_core.pyx; pyproject.toml has everything else.

cbn/_floor, which only `cbn bench` uses, is made of benchmarks/ in the same way.

Each tier is compiled with the flags that src_c/isa/tiers.toml gives it. Sources are compiled side
by side, and an object serves again as long as nothing that it was made of has changed (class Kept).
These environment variables change the build:

CBN_TIERS=baseline,...      builds these tiers alone
CBN_OBJECTS=folder          keeps objects in that folder instead of build/objects
CBN_NO_OPENMP=1             builds without OpenMP
CBN_WERROR=1                makes warnings about src_c errors
CBN_SANITIZE=address,...    builds with these sanitizers of the compiler
CBN_COVERAGE=1              counts the lines that run (gcov, Cython's linetrace)
CIBUILDWHEEL=1              fails where OpenMP does not work, unless CBN_NO_OPENMP=1
"""

from __future__ import annotations

import gzip
import hashlib
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from pprint import pformat
from sysconfig import get_platform

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError, LinkError, OptionError

TIERS = tomllib.loads((Path(__file__).parent / "src_c/isa/tiers.toml").read_text("utf-8"))
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

GNU = {
    "c": [
        *("-std=c11", "-ffp-contract=off", "-fno-wrapv", "-fno-math-errno", "-fno-trapping-math"),
        *("-fopenmp-simd", "-fvisibility=hidden", "-g0", "-Wall", "-Wextra", "-Wvla", "-Wshadow"),
        "-Wno-missing-field-initializers",  # clang: of {x}, whose other fields are zero
    ],
    "core": ["-O3"],
    # Kernels need two parts of -O3, which clang's -O2 has: loops over one line are unrolled, and
    # loops without `omp simd` are vectorised too. All of -O3 is a quarter larger and no faster.
    "kernels": ["-O2", "-fpeel-loops", "-fvect-cost-model=dynamic"],
    "cython": ["-O2", "-fvisibility=hidden", "-g0"],
    "werror": ["-Werror", "-Wstack-usage=8192"],
    # A finding ends the process.
    "sanitize": [
        *("-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g"),
        "-DCBN_CHECK_SCRATCH",
    ],
    "coverage": ["--coverage", "-fprofile-update=atomic", "-O0"],
    "tiers": {name: tier["gnu"] for name, tier in TIERS.items()},
    "openmp": {"compile": ["-fopenmp"], "link": ["-fopenmp"]},
    "libraries": ["m"],
}
APPLE = GNU | {"openmp": {"compile": ["-Xpreprocessor", "-fopenmp"], "link": ["-lomp"]}}
MSVC = {
    "c": ["/std:c11", "/fp:precise", "/W3"],
    "core": ["/O2"],
    "kernels": ["/O2"],
    "cython": [],
    "werror": ["/WX"],
    "tiers": {name: tier["msvc"] for name, tier in TIERS.items()},
    "openmp": {"compile": ["/openmp"], "link": []},
    "libraries": [],
}

# Through these a compiler takes flags and headers that its command does not show.
COMPILER_VARIABLES = (
    "CPATH",
    "C_INCLUDE_PATH",
    "GCC_EXEC_PREFIX",
    "SDKROOT",
    "INCLUDE",
    "CL",
    "_CL_",
)

# Where the headers of this project are, and not those of others.
INCLUDE_FOLDERS = ("src_c", "cbn/include", "benchmarks")

# Copied to where cbn.get_include() is.
HEADER = ("cbn", "include", "cbn.h")

PROBE_C = "int main(void) { return 0; }\n"
PROBE_OPENMP = """\
#include <omp.h>
int main(void) {
    int sum = 0, i;
#pragma omp parallel for reduction(+ : sum) num_threads(2)
    for (i = 0; i < 100; ++i)
        sum += i;
    return _OPENMP > 0 && omp_get_max_threads() > 0 && sum == 4950 ? 0 : 1;
}
"""

NO_COMPILER = """\
cbn is compiled from C and no working C compiler was found (tried: {command}).
  Debian, Ubuntu   apt install build-essential
  Fedora, RHEL     dnf install gcc
  macOS            xcode-select --install
  Windows          the "Desktop development with C++" workload of Visual Studio Build Tools
  another one      CC=/path/to/compiler pip install ..."""

NO_HEADERS = """\
cbn needs the C headers of Python {python} and Python.h was not found in {where}.
  Debian, Ubuntu   apt install python3-dev
  Fedora, RHEL     dnf install python3-devel"""

NO_OPENMP = """\
OpenMP does not work with {command} (tried: {flags}).
  Debian, Ubuntu   gcc has it; for clang: apt install libomp-dev
  macOS            brew install libomp, then set CPPFLAGS and LDFLAGS as brew says"""


class Kept:
    """A folder of compiled files, each of them named after everything that it was made of.

    The name has a hash of the source, the project's headers that it includes, the flags and the
    compiler. A file that exists is therefore the one that would be made.
    """

    MOST = 12  # files of one source; those that were used longest ago go first

    def __init__(self, folder):
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, stem, suffix, ingredients, make):
        """The path of the file, which `make` makes in the folder that it is given."""
        digest = hashlib.sha256(repr(ingredients).encode()).hexdigest()
        kept = self.folder / f"{stem}-{digest[:20]}{suffix}"
        if kept.exists():
            os.utime(kept)
        else:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                os.replace(make(folder), kept)
            by_age = sorted(self.folder.glob(f"{stem}-*{suffix}"), key=os.path.getmtime)
            for old in by_age[: -self.MOST]:
                old.unlink(missing_ok=True)
        return str(kept)


class BuildExt(build_ext):
    """Builds the C core tier by tier, the extensions, cbn/_build_config.py and the header."""

    def finalize_options(self):
        super().finalize_options()
        # Only the linking is left to setuptools, and it takes less than a second.
        self.force = True

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            self.toolchain = MSVC
        else:
            self.toolchain = APPLE if sys.platform == "darwin" else GNU
        self.known_flags = {}
        self.check_compiler()
        self.openmp = self.find_openmp()
        self.kept = Kept(os.environ.get("CBN_OBJECTS") or "build/objects")
        self.compile_all()
        super().build_extensions()
        config = Path(self.build_lib, "cbn", "_build_config.py")
        config.write_text(self.config_text(), encoding="utf-8")
        self.mkpath(os.path.join(self.build_lib, "cbn", "include"))
        self.copy_file("src_c/cbn.h", os.path.join(self.build_lib, *HEADER))

    def compile_all(self):
        """Compile every source, side by side and the long ones first, and prepare the linking."""
        checks = self.check_flags()
        kernels, rest = self.c_flags("kernels"), self.c_flags("core")
        identity = self.compiler_identity()
        objects = {ext.name: [] for ext in self.extensions}
        with ThreadPoolExecutor(self.parallel or usable_cpus()) as pool:

            def submit(module, *arguments, **options):
                job = pool.submit(self.object_of, identity, *arguments, **options)
                objects[module.name].append(job)

            for tier, tier_flags in reversed(self.isa_flags().items()):
                for path in sorted(Path("src_c/isa").glob(f"{tier}_*.c")):
                    submit(core, path.as_posix(), [*kernels, *tier_flags])
            submit(core, "src_c/isa/wide.c", kernels)
            written = [(ext, sorted(Path(ext.c_folder).glob("*.c"))) for ext in self.extensions]
            # Cython runs here, in this thread, while the pool waits for the compiler.
            for ext in self.extensions:
                own = [*self.toolchain["cython"], *checks]
                submit(ext, self.generated(ext), own, ext=ext)
            for ext, paths in written:
                for path in paths:
                    macros = without_tiers() if path.name == "dispatch.c" else []
                    submit(ext, path.as_posix(), rest, macros=macros)
            for ext in self.extensions:
                ext.sources = []
                ext.extra_objects = [job.result() for job in objects[ext.name]]
                ext.extra_link_args = [*self.openmp["link"], *checks]
                ext.libraries = self.toolchain["libraries"]

    def generated(self, ext):
        """The C file that Cython makes of the extension's source."""
        from Cython.Build import cythonize  # only a build needs it, and it takes time to import

        (source,) = ext.sources
        options = {"force": True, "quiet": True, "compiler_directives": DIRECTIVES}
        alone = Extension(ext.name, [source])
        if switched_on("CBN_COVERAGE"):  # whose report looks for it beside the source
            options["compiler_directives"] = DIRECTIVES | {"linetrace": True}
            return cythonize([alone], **options)[0].sources[0]

        def make(folder):
            return cythonize([alone], build_dir=folder, **options)[0].sources[0]

        texts = [path.read_bytes() for path in sorted(Path(source).parent.glob("*.p[xy][xdi]"))]
        ingredients = [source, texts, DIRECTIVES, version("cython"), version("numpy")]
        return self.kept.get(Path(source).stem, ".c", ingredients, make)

    def object_of(self, identity, source, flags, ext=None, macros=()):
        """The object made of a C source; `ext` is given for one that Cython has made."""
        folders, macros = ["src_c"], list(macros)
        if ext is not None:
            folders = [*ext.include_dirs, numpy_include(), *self.include_dirs]
            macros = ext.define_macros
            identity = [*identity, platform.python_version(), sys.abiflags, version("numpy")]

        def make(folder):
            return self.compiler.compile(
                [source], folder, macros, include_dirs=folders, extra_postargs=flags
            )[0]

        if switched_on("CBN_COVERAGE"):  # whose counts are found beside the object
            return make(self.build_temp)
        texts = sorted({path.read_bytes() for path in with_includes(source)})
        stem = Path(source).stem.partition("-")[0]
        return self.kept.get(
            stem, self.compiler.obj_extension, [texts, flags, macros, identity], make
        )

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        for name in (os.path.join("cbn", "_build_config.py"), os.path.join(*HEADER)):
            self.copy_file(os.path.join(self.build_lib, name), name)

    def c_flags(self, part):
        """Flags of the sources of src_c: those of the tiers if `part` is "kernels", or "core"."""
        checks = self.check_flags()
        openmp = self.openmp["compile"] if part == "core" else []  # kernels need `omp simd` alone
        flags = [*self.toolchain["c"], *self.known(part), *openmp, *checks]
        if switched_on("CBN_WERROR"):
            # Checks take stack of their own.
            flags += [f for f in self.known("werror") if not (checks and "stack" in f)]
        return flags

    def check_flags(self):
        """Flags of a build that watches what runs."""
        flags = []
        names = os.environ.get("CBN_SANITIZE", "")
        if names:
            flags += [f"-fsanitize={names}", *self.check_toolchain("CBN_SANITIZE", "sanitize")]
        if switched_on("CBN_COVERAGE"):
            flags += self.check_toolchain("CBN_COVERAGE", "coverage")
        return flags

    def check_toolchain(self, variable, key):
        if key not in self.toolchain:
            raise CompileError(f"{variable}: expected gcc or clang, got {self.command()[0]}")
        return self.toolchain[key]

    def isa_flags(self):
        return {tier: self.toolchain["tiers"][tier] for tier in chosen_tiers()}

    def check_compiler(self):
        if not self.runs(PROBE_C):
            raise CompileError(NO_COMPILER.format(command=" ".join(self.command())))
        if not any(Path(folder, "Python.h").is_file() for folder in self.include_dirs):
            where = ", ".join(self.include_dirs)
            raise CompileError(NO_HEADERS.format(python=platform.python_version(), where=where))

    def find_openmp(self):
        serial = {"compile": [], "link": []}
        if switched_on("CBN_NO_OPENMP"):
            return serial
        flags = self.toolchain["openmp"]
        if self.runs(PROBE_OPENMP, **flags):
            return flags
        tried = " ".join(flags["compile"])
        message = NO_OPENMP.format(command=" ".join(self.command()), flags=tried)
        if switched_on("CIBUILDWHEEL"):
            raise CompileError(f"{message}\nCBN_NO_OPENMP=1 builds without threads.")
        self.warn(f"{message}\nBuilding without OpenMP: cbn will run on one thread.")
        return serial

    def known(self, part):
        """Those flags of a part of the toolchain that the compiler knows."""
        if part not in self.known_flags:
            flags = self.toolchain[part]
            known = flags if self.knows(flags) else [f for f in flags if self.knows([f])]
            self.known_flags[part] = known
        return self.known_flags[part]

    def knows(self, flags):
        """Whether a program compiles with these flags, and without a warning."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(PROBE_C, encoding="utf-8")
            flags = [*self.toolchain["werror"][:1], *flags]
            try:
                self.compiler.compile([str(source)], folder, extra_postargs=flags)
            except CompileError:
                return False
            return True

    def runs(self, source, compile=(), link=()):
        """Whether the program compiles, links and exits with 0."""
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "probe.c").write_text(source, encoding="utf-8")
            try:
                objects = self.compiler.compile(
                    [os.path.join(folder, "probe.c")], folder, extra_postargs=list(compile)
                )
                self.compiler.link_executable(objects, "probe", folder, extra_postargs=list(link))
            except (CompileError, LinkError):
                return False
            program = self.compiler.executable_filename("probe", output_dir=folder)
            try:
                return subprocess.run([program], timeout=60).returncode == 0
            except (OSError, subprocess.TimeoutExpired):  # a cross compiler, a noexec folder
                return False

    def command(self):
        """The compiler without its flags."""
        words = getattr(self.compiler, "compiler_so", None) or [self.compiler.cc]
        return [word for word in words if not word.startswith("-")]

    def compiler_identity(self):
        """What tells one compiler and its surroundings from another."""
        words = getattr(self.compiler, "compiler_so", None) or [self.compiler.cc]
        variables = [(name, os.environ.get(name)) for name in COMPILER_VARIABLES]
        return [words, self.compiler_version(), machine(), variables]

    def compiler_version(self):
        option = [] if self.toolchain is MSVC else ["--version"]
        run = subprocess.run([*self.command(), *option], capture_output=True, text=True)
        return ((run.stdout if option else run.stderr).splitlines() or ["unknown"])[0]

    def config_text(self):
        config = {
            "compiler": {
                "command": " ".join(self.command()),
                "version": self.compiler_version(),
                "flags": [*self.toolchain["c"], *self.check_flags()],
                "core_flags": self.known("core"),
                "kernel_flags": self.known("kernels"),
            },
            "openmp": {"enabled": self.openmp["compile"] != [], "flags": self.openmp["compile"]},
            "isa_flags": self.isa_flags(),
            "isa_left_out": [tier for tier in known_tiers() if tier not in chosen_tiers()],
            "machine": machine(),
            "python": platform.python_version(),
            "cython": version("cython"),
        }
        title = '"""How this copy of cbn was built; written by setup.py."""'
        return f"{title}\n\nCONFIG = {pformat(config, sort_dicts=False, width=96)}\n"


class Sdist(sdist):
    """An archive whose bytes follow from its files: no times, no names of whoever made it."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, **_):
        if format != "gztar":
            raise OptionError(f"formats: expected gztar, got {format}")
        name = f"{base_name}.tar.gz"
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        with (
            open(name, "wb") as file,
            gzip.GzipFile("", "wb", mtime=0, fileobj=file) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            archive.add(base_dir, filter=anonymous)
        return name


def anonymous(member):
    executable = member.isdir() or member.mode & 0o100
    member.mode = 0o755 if executable else 0o644
    member.mtime = int(os.environ.get("SOURCE_DATE_EPOCH") or 315532800)  # 1980-01-01
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def switched_on(name):
    return os.environ.get(name, "") not in ("", "0")


def machine():
    """The processor family built for, in GNU's words."""
    archs = re.findall(r"-arch\s+(\S+)", os.environ.get("ARCHFLAGS", ""))
    if len(archs) > 1:
        raise CompileError(f"ARCHFLAGS: expected one -arch, got {' '.join(archs)}")
    name = archs[0] if archs else get_platform().rpartition("-")[2]
    return MACHINES.get(name, name)


def numpy_include():
    import numpy

    return numpy.get_include()


def usable_cpus():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def known_tiers():
    return [name for name, tier in TIERS.items() if tier["machine"] in ("any", machine())]


def chosen_tiers():
    """The tiers that are built: those of the machine, or those of CBN_TIERS."""
    known = known_tiers()
    named = [name.strip() for name in os.environ.get("CBN_TIERS", "").split(",") if name.strip()]
    if not set(named) <= set(known):
        got = os.environ["CBN_TIERS"]
        raise OptionError(f"CBN_TIERS: expected a list of {', '.join(known)}, got {got!r}")
    return [tier for tier in known if tier in named or not named]


def without_tiers():
    """Macros that tell dispatch.c which tiers are not there."""
    return [(f"CBN_WITHOUT_{t.upper()}", "1") for t in known_tiers() if t not in chosen_tiers()]


def with_includes(source):
    """A C file and all the headers of the project that it includes."""
    found, left = [], [Path(source)]
    while left:
        path = left.pop()
        if path.is_file() and path.resolve() not in found:
            found.append(path.resolve())
            names = re.findall(rb'^\s*#\s*include\s+"(.+?)"', path.read_bytes(), re.MULTILINE)
            folders = [path.parent, *map(Path, INCLUDE_FOLDERS)]
            left += [folder / name.decode() for name in names for folder in folders]
    return found


if sys.platform == "darwin":
    # A universal2 Python would compile every file for two processors with one set of flags.
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "binding": True,
    "embedsignature": True,
    "freethreading_compatible": True,
}


def extension(name, source, c_folder):
    ext = Extension(name, [source], include_dirs=[c_folder])
    ext.c_folder = c_folder
    if switched_on("CBN_COVERAGE"):
        ext.define_macros.append(("CYTHON_TRACE", "1"))
    return ext


core = extension("cbn._core", "cbn/_core.pyx", "src_c")
core.include_dirs.append("cbn/include")
core.define_macros.append(("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"))
floor = extension("cbn._floor", "benchmarks/_floor.pyx", "benchmarks")

setup(ext_modules=[core, floor], cmdclass={"build_ext": BuildExt, "sdist": Sdist})
