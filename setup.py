"""Compile src_c and link it with cbn/_core.pyx; pyproject.toml has everything else.

cbn/_floor, which only `cbn bench` uses, is made of benchmarks/ in the same way.

Each file of src_c/isa is one instruction-set tier and gets its own flags. Environment:
CBN_NO_OPENMP=1 builds without OpenMP, CBN_WERROR=1 makes warnings about src_c errors,
CBN_SANITIZE=address,undefined builds with these sanitizers of the compiler, CBN_COVERAGE=1 counts
the lines that run (gcov, Cython's linetrace), CIBUILDWHEEL=1 refuses to go on when OpenMP was not
opted out of and does not work.
"""

from __future__ import annotations

import gzip
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from pprint import pformat
from sysconfig import get_platform

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError, LinkError, OptionError

TIERS = {"x86_64": ["baseline", "avx2", "avx512"], "aarch64": ["baseline", "neon"]}
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

GNU_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
GNU_AVX512 = [f"-mavx512{part}" for part in ("f", "cd", "bw", "dq", "vl")]
GNU = {
    "c": [
        *("-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
        *("-fopenmp-simd", "-fvisibility=hidden", "-g0", "-Wall", "-Wextra", "-Wvla", "-Wshadow"),
        "-Wno-missing-field-initializers",  # clang: of {x}, whose other fields are zero
    ],
    "cython": ["-fvisibility=hidden", "-g0"],
    "werror": ["-Werror", "-Wstack-usage=8192"],
    # A finding ends the process.
    "sanitize": [
        *("-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g"),
        "-DCBN_CHECK_SCRATCH",
    ],
    "coverage": ["--coverage", "-fprofile-update=atomic", "-O0"],
    "avx2": GNU_AVX2,
    "avx512": [*GNU_AVX2, *GNU_AVX512, "-mprefer-vector-width=512"],
    "openmp": {"compile": ["-fopenmp"], "link": ["-fopenmp"]},
    "libraries": ["m"],
}
APPLE = GNU | {"openmp": {"compile": ["-Xpreprocessor", "-fopenmp"], "link": ["-lomp"]}}
MSVC = {
    "c": ["/O2", "/std:c11", "/fp:precise", "/W3"],
    "cython": [],
    "werror": ["/WX"],
    "avx2": ["/arch:AVX2"],
    "avx512": ["/arch:AVX512"],
    "openmp": {"compile": ["/openmp"], "link": []},
    "libraries": [],
}

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


class BuildExt(build_ext):
    """Builds the C core tier by tier, the extensions, cbn/_build_config.py and the header."""

    def finalize_options(self):
        super().finalize_options()
        # The flags depend on the environment, which no time stamp shows.
        self.force = True

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            self.toolchain = MSVC
        else:
            self.toolchain = APPLE if sys.platform == "darwin" else GNU
        self.check_compiler()
        self.openmp = self.find_openmp()
        super().build_extensions()
        config = Path(self.build_lib, "cbn", "_build_config.py")
        config.write_text(self.config_text(), encoding="utf-8")
        self.mkpath(os.path.join(self.build_lib, "cbn", "include"))
        self.copy_file("src_c/cbn.h", os.path.join(self.build_lib, *HEADER))

    def build_extension(self, ext):
        checks = self.check_flags()
        flags = [*self.toolchain["c"], *self.openmp["compile"], *checks]
        if switched_on("CBN_WERROR"):
            # Checks take stack of their own.
            werror = [f for f in self.toolchain["werror"] if not (checks and "stack" in f)]
            flags += filter(self.knows, werror)
        folder = ext.include_dirs[0]
        ext.extra_objects = self.compile_c(sorted(map(str, Path(folder).glob("*.c"))), flags)
        if ext.name == "cbn._core":
            for tier, tier_flags in self.isa_flags().items():
                ext.extra_objects += self.compile_c([f"src_c/isa/{tier}.c"], [*flags, *tier_flags])
        ext.extra_compile_args = [*self.toolchain["cython"], *checks]
        ext.extra_link_args = [*self.openmp["link"], *checks]
        ext.libraries = self.toolchain["libraries"]
        super().build_extension(ext)

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        for name in (os.path.join("cbn", "_build_config.py"), os.path.join(*HEADER)):
            self.copy_file(os.path.join(self.build_lib, name), name)

    def compile_c(self, sources, flags):
        return self.compiler.compile(
            sources, output_dir=self.build_temp, include_dirs=["src_c"], extra_postargs=flags
        )

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
        return {tier: self.toolchain.get(tier, []) for tier in TIERS.get(machine(), ["baseline"])}

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

    def knows(self, flag):
        return self.runs(PROBE_C, compile=[*self.toolchain["werror"][:1], flag])

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
            },
            "openmp": {"enabled": self.openmp["compile"] != [], "flags": self.openmp["compile"]},
            "isa_flags": self.isa_flags(),
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
    ext = Extension(
        name,
        [source],
        include_dirs=[c_folder],
        depends=[str(path) for path in sorted(Path(c_folder).rglob("*.[ch]"))],
    )
    ext.cython_c_in_temp = not switched_on("CBN_COVERAGE")  # whose report looks for it
    ext.cython_directives = DIRECTIVES
    if switched_on("CBN_COVERAGE"):
        ext.cython_directives = {**DIRECTIVES, "linetrace": True}
        ext.define_macros.append(("CYTHON_TRACE", "1"))
    return ext


core = extension("cbn._core", "cbn/_core.pyx", "src_c")
core.include_dirs += ["cbn/include", numpy.get_include()]
core.depends.append("cbn/include/cbn_api.h")
core.define_macros.append(("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"))
floor = extension("cbn._floor", "benchmarks/_floor.pyx", "benchmarks")

setup(ext_modules=[core, floor], cmdclass={"build_ext": BuildExt, "sdist": Sdist})
