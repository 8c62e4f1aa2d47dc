"""Prints the coverage of each file, the lines that no test runs, with the reason why, and the lines
of which a branch is never taken.

`uncovered.py CYTHON_JSON GCOVR_JSON QUICK_CYTHON_JSON QUICK_GCOVR_JSON`, for .ci/coverage: of the
whole run and of the one without slow tests. Branches are those of src_c/*.c: a kernel's
are copied into dozens of functions (dtypes, tiers, inlined constants), most of which can take only
one side of them; .ci/mutate asks more of kernels than that.

A reason stands beside the code, in a comment above it:

    /* uncovered: it needs a CPU without AVX-512 */

It serves for the next line and for those below it that are indented more than the comment. REASONS
has what is true of any file.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

LEAST_BRANCHES = 95  # per cent

# (file, what the line looks like, why no test can run it)
REASONS = [
    (r"\.p(yx|xi)", r"raise MemoryError", "the system gives memory"),
    (r"\.p(yx|xi)", r"raise RuntimeError", "the library's own mistake"),
    (r"\.pxi", r'^(cdef|def|\w+ =) |^$|^    "', "declarations of an included file are not traced"),
]
MARK = re.compile(r"\s*(?:/\*|#) uncovered: (.+?)(?: \*/|$)")
NOT_TRACED = re.compile(r"\s*with nogil:$")


def width(line: str) -> int:
    return len(line) - len(line.lstrip())


def marked(text: list[str]) -> dict[int, str]:
    """The reasons that stand in the text, by line from 1."""
    reasons = {}
    for above, line in enumerate(text):
        mark = MARK.match(line)
        if not mark and not NOT_TRACED.match(line):
            continue
        for below in range(above + 1, len(text)):
            if below > above + 1 and text[below].strip() and width(text[below]) <= width(line):
                break
            reasons[below + 1] = mark[1] if mark else "what runs without the GIL is not traced"
    return reasons


def reason(path: str, line: str) -> str | None:
    for file, pattern, why in REASONS:
        if re.search(file + "$", path) and re.search(pattern, line):
            return why
    return None


def counted(cython_json: str, c_json: str) -> tuple[dict, dict, dict]:
    """By file: the number of lines and those not run, branches taken and all, one-way lines."""
    cython = json.loads(Path(cython_json).read_text(encoding="utf-8"))["files"]
    c = json.loads(Path(c_json).read_text(encoding="utf-8"))["files"]
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
    return lines, branches, one_way


def main() -> int:
    lines, branches, one_way = counted(*sys.argv[1:3])
    unexplained = 0
    for name, (total, missing) in sorted(lines.items()):
        text = Path(name).read_text(encoding="utf-8").splitlines()
        beside = marked(text)
        taken, of = branches.get(name, (0, 0))
        share = f", {taken} of {of} branches" if of else ""
        print(f"{name}: {total - len(missing)} of {total} lines{share}")
        for number in missing:
            why = beside.get(number) or reason(name, text[number - 1])
            unexplained += why is None
            print(f"    {number}: {text[number - 1].strip()}  -- {why or 'NO TEST RUNS IT'}")
        if name in one_way:
            print(f"    a branch of {', '.join(one_way[name])} is never taken")
    print("What only slow tests, other tiers or the harness run:")
    for name, (_, missing) in sorted(counted(*sys.argv[3:5])[0].items()):
        if more := sorted(set(missing) - set(lines.get(name, (0, ()))[1])):
            print(f"    {name}: {len(more)} lines, {', '.join(map(str, more))}")
    taken, of = map(sum, zip(*branches.values(), strict=True))
    print(f"Lines without a reason: {unexplained}. Branches: {100 * taken / of:.1f} %")
    return 0 if unexplained == 0 and taken >= of * LEAST_BRANCHES / 100 else 1


if __name__ == "__main__":
    sys.exit(main())
