"""src_c/dispatch.c and src_c/isa: every required tier runs, and all give the same bytes."""

from __future__ import annotations

import os

import numpy as np
import pytest

import cbn
from cases import same_bytes
from isa_cases import compute
from tiers import cpu_tiers, required_tiers

RUNTIME = cbn.show_runtime("dicts")["isa"]
UNSUPPORTED = sorted({"avx2", "avx512", "neon"} - set(RUNTIME["supported"]))


def without_nan(results):
    """NaN for NaN: which NaN comes of two is left open by IEEE 754."""
    return {
        name: np.where(np.isnan(a), a.dtype.type(np.nan), a) if a.dtype.kind == "f" else a
        for name, a in results.items()
        if name != "tier"
    }


def test_the_tiers_found_are_those_of_the_cpu():
    assert RUNTIME["supported"] == cpu_tiers()
    assert set(required_tiers()) <= set(RUNTIME["supported"]) <= set(RUNTIME["built"])


def test_the_tier_chosen_here():
    assert RUNTIME["chosen"] == (os.environ.get("CBN_ISA") or RUNTIME["supported"][-1])


def test_every_tier_gives_the_bytes_of_the_baseline(tier, isa_results):
    results = isa_results(tier)
    assert results["tier"] == tier
    assert len(results) > 1000
    same_bytes(without_nan(results), without_nan(isa_results("baseline")))


def test_this_process_gives_the_bytes_of_the_baseline(isa_results):
    same_bytes(without_nan(compute()), without_nan(isa_results("baseline")))


def test_an_empty_variable_is_unset(run_python):
    code = "import cbn; print(cbn.show_runtime('dicts')['isa']['chosen'])"
    run = run_python("-c", code, CBN_ISA="")
    assert run.stdout.split() == [RUNTIME["supported"][-1]], run.stderr


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx2 ", "avx2,baseline", "0", *UNSUPPORTED])
def test_a_tier_that_cannot_run_is_an_error(name, run_python):
    run = run_python("-c", "import cbn", CBN_ISA=name)
    assert run.returncode != 0
    message = run.stderr.splitlines()[-1]
    assert message.startswith("ValueError: CBN_ISA: expected one of ")
    assert all(tier in message for tier in RUNTIME["supported"])
    assert message.endswith(f"got {name!r}")
