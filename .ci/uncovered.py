"""Prints the coverage of each file, the lines that no test runs, with the reason why, and the lines
of which a branch is never taken.

`uncovered.py CYTHON_JSON GCOVR_JSON`, for .ci/coverage. Branches are those of src_c/*.c: a kernel's
are copied into dozens of functions (dtypes, tiers, inlined constants), most of which can take only
one side of them; .ci/mutate asks more of kernels than that.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

LEAST_BRANCHES = 95  # per cent

# (file, what the line looks like, why no test can run it)
REASONS = [
    (r"\.p(yx|xi)", r"raise MemoryError|Free\(resources\.scratch", "the system gives memory"),
    (r"_core\.pyx", r"raise RuntimeError", "the library's own mistake"),
    (r"\.p(yx|xi)", r"= cbn_c\.cbn_\w+\(|&resources\)$", "calls without the GIL are not traced"),
    (r"_tensors\.pxi", r"^ {8}(if |    )", "what runs without the GIL is not traced"),
    (r"\.pxi", r'^(cdef|def|\w+ =) |^$|^    "', "declarations of an included file are not traced"),
    (r"dispatch\.c", r"avx512(cd|bw)", "CPUs without AVX-512 stop before"),
    (r"stream\.h", r"_mm512_stream", "needs AVX-512"),
    (r"work\.c", r"after_fork_in_child", "runs in a child that ends without writing its counts"),
]


def reason(path: str, line: str) -> str | None:
    for file, pattern, why in REASONS:
        if re.search(file + "$", path) and re.search(pattern, line):
            return why
    return None


def main() -> int:
    cython = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["files"]
    c = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))["files"]
    lines = {
        name: (f["summary"]["num_statements"], f["missing_lines"]) for name, f in cython.items()
    }
    branches, one_way = {}, {}
    for file in c:
        counts = {}
        for line in file["lines"]:
            number = line["line_number"]
            counts[number] = counts.get(number, 0) + line["count"]
            if file["file"].endswith(".c"):
                taken = [b["count"] > 0 for b in line["branches"]]
                here = branches.setdefault(file["file"], [0, 0])
                here[0] += sum(taken)
                here[1] += len(taken)
                if not all(taken):
                    one_way.setdefault(file["file"], []).append(str(number))
        lines[file["file"]] = (len(counts), [n for n, count in counts.items() if count == 0])

    unexplained = 0
    for name, (total, missing) in sorted(lines.items()):
        text = Path(name).read_text(encoding="utf-8").splitlines()
        taken, of = branches.get(name, (0, 0))
        share = f", {taken} of {of} branches" if of else ""
        print(f"{name}: {total - len(missing)} of {total} lines{share}")
        for number in missing:
            why = reason(name, text[number - 1])
            unexplained += why is None
            print(f"    {number}: {text[number - 1].strip()}  -- {why or 'NO TEST RUNS IT'}")
        if name in one_way:
            print(f"    a branch of {', '.join(one_way[name])} is never taken")
    taken, of = map(sum, zip(*branches.values(), strict=True))
    print(f"Lines without a reason: {unexplained}. Branches: {100 * taken / of:.1f} %")
    return 0 if unexplained == 0 and taken >= of * LEAST_BRANCHES / 100 else 1


if __name__ == "__main__":
    sys.exit(main())
