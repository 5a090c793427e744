"""Fuzzes the kernels with libFuzzer, one program for each family. tests/c/fuzz.c draws the cases and checks them.

    python tests/fuzz_kernels.py --seconds 60

A failure names its case and leaves its input in build/fuzz. To run it again, pass that file alone to the program.

tests/c/corpus has the inputs to start from, one per line, in hexadecimal. Of the inputs found in some minutes, they are
the fewest and shortest that reach all branches reached. --rewrite-corpus selects them anew from those in build/fuzz.
"""

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from kernel_build import C_TESTS, ROOT, SANITIZE, SANITIZER_ENV, can_link, compile_objects, kernel_sources, link, run

FAMILIES = ["cross_entropy", "binary", "soft_stats", "confusion", "topk", "lovasz", "one_hot"]
CORPUS = C_TESTS / "corpus"
COMPILER = "clang"
MAX_INPUT = 512  # bytes; what fuzz.c draws beyond comes from a generator

# Only the kernels are instrumented: the aim is to reach their branches, not those of the reference. Comparisons are not
# traced: that would take most of the time, and no kernel compares its input with a secret.
INSTRUMENT = ["-O1", "-g", *SANITIZE, "-fsanitize-coverage=inline-8bit-counters,pc-table"]
LINK = ["-fsanitize=fuzzer,address,undefined"]


def fuzz_sources():
    for family in FAMILIES:
        yield f"fuzz_{family}", C_TESTS / "fuzz.c", ["-O2", "-g", "-Wno-unused-function", f"-DFAMILY=fuzz_{family}"]


def build_fuzzers(kernel_objects, directory):
    """The program of each family, with kernels compiled with INSTRUMENT."""
    objects = compile_objects(COMPILER, [], fuzz_sources())
    return {
        family: link(COMPILER, LINK, [own, *kernel_objects], directory / f"fuzz_{family}")
        for family, own in zip(FAMILIES, objects, strict=True)
    }


def read_corpus(family):
    return [bytes.fromhex(line) for line in (CORPUS / f"{family}.txt").read_text().split()]


def fuzz(program, family, found, options):
    """Returns the exit status and the output. New inputs are written to `found`, an input that fails beside it."""
    found.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(read_corpus(family)):
        (found / f"seed{i}").write_bytes(seed)
    # The limit is on each allocation, not on peak memory: that of a process includes what its parent used before.
    limits = [f"-max_len={MAX_INPUT}", "-len_control=0", "-rss_limit_mb=0", "-malloc_limit_mb=2048"]
    command = [program, *options, *limits, f"-artifact_prefix={found}-", found]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=SANITIZER_ENV)
    return done.returncode, done.stdout


def rewrite_corpus(program, family, found):
    merged = found.with_name(f"{family}-merged")
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    run([program, "-merge=1", "-use_counters=0", "-max_len=40", merged, found], env=SANITIZER_ENV)
    seeds = sorted((path.read_bytes() for path in merged.iterdir()), key=lambda seed: (len(seed), seed))
    (CORPUS / f"{family}.txt").write_text("".join(f"{seed.hex()}\n" for seed in seeds if seed))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each family (default: 60)")
    parser.add_argument("--rewrite-corpus", action="store_true", help="afterwards, from what was found")
    args = parser.parse_args()
    directory = ROOT / "build" / "fuzz"
    directory.mkdir(parents=True, exist_ok=True)
    if not can_link(COMPILER, LINK, directory):
        sys.exit(f"{COMPILER} with libFuzzer is needed, and was not found on PATH")
    programs = build_fuzzers(compile_objects(COMPILER, INSTRUMENT, kernel_sources()), directory)

    def fuzz_family(family):
        status, output = fuzz(programs[family], family, directory / family, [f"-max_total_time={args.seconds}"])
        last = output if status else next(line for line in output.splitlines() if "DONE" in line)
        print(f"{family}: {last}", flush=True)
        if args.rewrite_corpus and not status:
            rewrite_corpus(programs[family], family, directory / family)
        return status

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sys.exit(any(list(pool.map(fuzz_family, FAMILIES))))


if __name__ == "__main__":
    main()
