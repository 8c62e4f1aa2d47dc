"""``cbn info``: what this copy of cbn is and what it runs with here."""

from __future__ import annotations

import argparse
import json
from typing import Any

import cbn


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "info",
        help="version, compiler, OpenMP, threads and instruction sets",
        description="Print what this copy of cbn was built with and what it runs with here.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the text, or JSON."""
    facts = _facts()
    print(json.dumps(facts, indent=2) if options.json else _text(facts))
    return 0


def _facts() -> dict[str, Any]:
    config, runtime = cbn.show_config(mode="dicts"), cbn.show_runtime(mode="dicts")
    return {**config, **runtime, "openmp": {**config["openmp"], **runtime["openmp"]}}


def _text(facts: dict[str, Any]) -> str:
    openmp, isa = facts["openmp"], facts["isa"]
    variables = [f"{name}={text}" for name, text in facts["environment"].items() if text]
    left_out = ", ".join(facts["isa_left_out"])
    without = f" (CBN_TIERS left out {left_out})" if left_out else ""
    lines = {
        "cbn": facts["version"],
        "Python": f"{facts['python']}, NumPy {facts['numpy']}, {facts['machine']}",
        "compiler": facts["compiler"]["version"],
        "OpenMP": f"version {openmp['version']}" if openmp["enabled"] else "not in this build",
        "threads": facts["threads"],
        "ISA built": ", ".join(isa["built"]) + without,
        "ISA found": ", ".join(isa["supported"]),
        "ISA chosen": isa["chosen"],
        "environment": ", ".join(variables) or "nothing set",
    }
    return "\n".join(f"{name:12} {value}" for name, value in lines.items())
