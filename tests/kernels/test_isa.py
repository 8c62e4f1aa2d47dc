"""src_c/dispatch.c and src_c/isa: every required tier runs, and all give the same bytes."""

from __future__ import annotations

import os

import pytest
from tiers import TIERS, cpu_flags, cpu_tiers, required_tiers

import cbn

RUNTIME = cbn.show_runtime("dicts")["isa"]
UNSUPPORTED = sorted(set(TIERS) - set(RUNTIME["supported"]))


def test_the_tiers_found_are_those_of_the_cpu():
    assert RUNTIME["supported"] == cpu_tiers()
    assert set(required_tiers()) <= set(RUNTIME["supported"]) <= set(RUNTIME["built"])


@pytest.mark.parametrize(
    "cpuinfo",
    ["processor\t: 0\nflags\t\t: fpu vme\nbugs\t: none\n", "BogoMIPS : 50\nFeatures : fpu vme\n"],
    ids=["x86", "arm"],
)
def test_the_flags_of_a_cpu_are_found(cpuinfo):
    assert cpu_flags(cpuinfo) == {"fpu", "vme"}


def test_the_tier_chosen_here():
    assert RUNTIME["chosen"] == (os.environ.get("CBN_ISA") or RUNTIME["supported"][-1])


def test_an_empty_variable_is_unset(run_python):
    code = "import cbn; print(cbn.show_runtime('dicts')['isa']['chosen'])"
    run = run_python("-c", code, CBN_ISA="")
    assert run.stdout.split() == [RUNTIME["supported"][-1]], run.stderr


@pytest.mark.parametrize(
    "name", ["sse9", "BASELINE", "baseline ", "baseline,baseline", "0", *UNSUPPORTED]
)
def test_a_tier_that_cannot_run_is_an_error(name, run_python):
    run = run_python("-c", "import cbn", CBN_ISA=name)
    assert run.returncode != 0
    message = run.stderr.splitlines()[-1]
    assert message.startswith("ValueError: CBN_ISA: expected one of ")
    assert all(tier in message for tier in RUNTIME["supported"])
    assert message.endswith(f"got {name!r}")
