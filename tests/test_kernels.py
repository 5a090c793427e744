"""Compiles tests/c with the kernels and runs it, without Python: under sanitizers, valgrind and a fuzzer."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import fuzz_kernels
import pytest
from kernel_build import (
    C_TESTS,
    CC,
    CPU_FLAGS,
    EMULATOR,
    ISA_FLAGS,
    KERNELS,
    SANITIZE,
    SANITIZER_ENV,
    built_kernels,
    can_link,
    can_run,
    compile_objects,
    kernel_sources,
    link,
    processor_flags,
    run,
)

pytestmark = pytest.mark.cpu_only

FUZZ_SECONDS = 3


def error_bounds():
    """The bounds that math_tmpl.h states, in units in the last place."""
    bounds = re.findall(r"within ([\d.]+) ulp", (KERNELS / "math_tmpl.h").read_text())
    names = ("EXP", "LOG", "LOG1P", "LOG1P_OF_FRACTION")
    return [f"-D{name}_BOUND={bound}" for name, bound in zip(names, bounds, strict=True)]


def program_sources(flags, options):
    """Sanitizers are to look at the kernels and what is of their templates, not at the references."""
    yield "test_kernels", C_TESTS / "test_kernels.c", ["-O2", *error_bounds(), *options]
    for isa, isa_flags in ISA_FLAGS.items():
        names = [f'-DISA="{isa}"', f"-DELEMENTARY=elementary_{isa}"]
        yield f"elementary_{isa}", C_TESTS / "elementary.c", [*flags, *isa_flags, *names]


def check_tables(output):
    """The test program must have run the tables of all instruction sets that this processor has."""
    if processor_flags():
        names = [isa if can_run(isa) else f"{isa} (not on this processor)" for isa in CPU_FLAGS]
        assert output.splitlines()[0] == f"tables: {' '.join(names)}"


def run_program(compiler, flags, kernels, directory, options=()):
    """The test program, compiled with the options, and the kernels' object files."""
    objects = compile_objects(compiler, [], program_sources(flags, options))
    program = link(compiler, flags, [*objects, *kernels], directory / "test_kernels")
    output = run([*EMULATOR, program], env=SANITIZER_ENV)
    print(output)  # the measured errors, with pytest -s
    check_tables(output)
    assert output.rstrip().endswith("ok")


@pytest.fixture(scope="module")
def plain_kernels():
    """Those of the extension itself, or the same compiled here."""
    return built_kernels() or compile_objects(CC, ["-O3"], kernel_sources())


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """Compiler, flags and the kernels' object files: what can be fuzzed, too, where there is libFuzzer."""
    directory = tmp_path_factory.mktemp("sanitized")
    fuzzed = (fuzz_kernels.COMPILER, fuzz_kernels.INSTRUMENT)
    for compiler, flags in (fuzzed, ("cc", ["-Og", "-g1", *SANITIZE])):  # -O1 -g compiles three times as long
        if can_link(compiler, fuzz_kernels.LINK if flags is fuzz_kernels.INSTRUMENT else flags, directory):
            return compiler, flags, compile_objects(compiler, flags, kernel_sources())
    pytest.skip("no compiler on PATH links the address and the undefined-behaviour sanitizer")


def test_kernels_equal_slow_references(plain_kernels, tmp_path):
    run_program(CC, ["-O3"], plain_kernels, tmp_path, ["-DFEW_CASES"] if EMULATOR else [])


def test_kernels_of_clang_equal_slow_references(tmp_path):
    if not can_link("clang", [], tmp_path):
        pytest.skip("clang is not on PATH")
    run_program("clang", ["-O3"], compile_objects("clang", ["-O3"], kernel_sources()), tmp_path)


def test_sanitizers_find_nothing_in_the_test_program(sanitized, tmp_path):
    compiler, flags, kernels = sanitized
    run_program(compiler, flags, kernels, tmp_path, ["-DFEW_CASES"])


def test_fuzzer_finds_nothing_in_seconds(sanitized, tmp_path):
    _, flags, kernels = sanitized
    if flags is not fuzz_kernels.INSTRUMENT:
        pytest.skip("there is no clang with libFuzzer on PATH")
    programs = fuzz_kernels.build_fuzzers(kernels, tmp_path)

    def fuzz_family(family):
        options = ["-seed=1", f"-max_total_time={FUZZ_SECONDS}"]
        return fuzz_kernels.fuzz(programs[family], family, tmp_path / family, options)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for status, output in pool.map(fuzz_family, fuzz_kernels.FAMILIES):
            assert status == 0, output
            assert int(re.search(r"#(\d+)\s+DONE", output)[1]) > 100


@pytest.mark.parametrize("family", fuzz_kernels.FAMILIES)
def test_valgrind_finds_nothing_in_the_corpus(plain_kernels, family, tmp_path):
    """Without AVX-512, which valgrind does not know and hides from the program."""
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not on PATH")
    source = (
        f"replay_{family}",
        C_TESTS / "replay.c",
        ["-O2", "-g", "-Wno-unused-function", f"-DFAMILY=fuzz_{family}"],
    )
    objects = compile_objects("cc", [], [source])
    program = link("cc", [], [*objects, *plain_kernels], tmp_path / "replay")
    corpus = fuzz_kernels.CORPUS / f"{family}.txt"
    command = ["valgrind", "--quiet", "--error-exitcode=9", program, corpus, "10"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
