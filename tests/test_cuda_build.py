"""How setup.py builds the CUDA kernels: with compilers that only note how they are called."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "csrc" / "kernels" / "cuda").glob("*.cu"))

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stand-ins for compilers are shell scripts"),
    pytest.mark.skipif(not (ROOT / "segloss").exists(), reason="this tree has no package to build"),
]

NVCC = """#!/bin/sh
[ "$1" = --list-gpu-code ] && exec printf 'sm_%s\\n' 50 60 61 70 75 80 86 87 90 100 103 120 121
echo "$*" >> "$CALLS"
for last; do :; done
echo > "$last"
"""


@pytest.fixture
def build(tmp_path):
    """Builds a copy of the sources for a torch that has only a version; returns what nvcc was called with."""
    for name in ("csrc", "segloss"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.11.0'")
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    (tmp_path / "cuda" / "bin" / "nvcc").write_text(NVCC)
    (tmp_path / "cuda" / "bin" / "nvcc").chmod(0o755)

    def run(architectures="9.0", **environment):
        calls = tmp_path / "calls"
        calls.write_text("")
        settings = os.environ | {
            "SEGLOSS_CUDA": "1",
            "SEGLOSS_TORCH": str(tmp_path / "torch"),
            "TORCH_CUDA_ARCH_LIST": architectures,
            "CUDA_HOME": str(tmp_path / "cuda"),
            "CALLS": str(calls),
            "CC": "true",  # compiles nothing
            "CXX": "true",
        }
        command = [
            sys.executable,
            "setup.py",
            "--quiet",
            "build_ext",
            "--build-lib",
            "built",
            "--build-temp",
            "objects",
        ]
        done = subprocess.run(command, cwd=tmp_path, env=settings | environment, capture_output=True, text=True)
        return done, calls.read_text().splitlines()

    return run


def names_of_compiled(calls):
    return sorted(Path(call.split(" -c ")[1].split()[0]).stem for call in calls if " -c " in call)


def make_newer(path):
    later = time.time() + 3600
    os.utime(path, (later, later))


def test_each_source_is_compiled_on_its_own_and_all_are_linked(build, tmp_path):
    done, calls = build()
    assert done.returncode == 0, done.stderr
    *compiled, linked = calls
    assert names_of_compiled(compiled) == NAMES
    assert linked.split()[1] == "-shared"
    assert sorted(Path(word).stem for word in linked.split() if word.endswith(".o")) == NAMES
    assert (tmp_path / "built" / "segloss" / "libsegloss_cuda.so").exists()


def test_only_a_source_that_has_changed_is_compiled_again(build, tmp_path):
    build()
    assert build()[1] == []
    make_newer(tmp_path / "csrc" / "kernels" / "cuda" / f"{NAMES[0]}.cu")
    *compiled, linked = build()[1]
    assert names_of_compiled(compiled) == NAMES[:1]
    assert linked.split()[1] == "-shared"


@pytest.mark.parametrize("header", ["cuda/launchers.h", "kernels.h"])
def test_a_header_that_has_changed_compiles_every_source_again(build, tmp_path, header):
    build()
    make_newer(tmp_path / "csrc" / "kernels" / header)
    assert names_of_compiled(build()[1]) == NAMES


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("9.0", ["-gencode=arch=compute_90,code=sm_90"]),
        ("12.0", ["-gencode=arch=compute_120,code=sm_120"]),
        (
            "8.0;9.0a+PTX",
            [
                "-gencode=arch=compute_80,code=sm_80",
                "-gencode=arch=compute_90a,code=sm_90a",
                "-gencode=arch=compute_90a,code=compute_90a",
            ],
        ),
        ("7.5 8.6", ["-gencode=arch=compute_75,code=sm_75", "-gencode=arch=compute_86,code=sm_86"]),
    ],
)
def test_the_architectures_are_those_that_torchs_variable_names(build, tmp_path, named, expected):
    build(named)
    options = (tmp_path / "build" / "nvcc_options").read_text().split()
    assert [option for option in options if "arch" in option] == expected


def test_without_a_name_and_a_gpu_they_are_every_generation_that_nvcc_knows(build, tmp_path):
    build("", CUDA_VISIBLE_DEVICES="")
    *options, ptx = (tmp_path / "build" / "nvcc_options").read_text().split()[-7:]
    assert options == [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (70, 75, 80, 90, 100, 120)]
    assert ptx == "-gencode=arch=compute_120,code=compute_120"


def test_other_architectures_compile_every_source_again(build):
    build("9.0")
    assert names_of_compiled(build("8.0")[1]) == NAMES


@pytest.mark.parametrize("named", ["Hopper", "90", "9.0+", "sm_90"])
def test_an_architecture_that_is_no_number_is_refused(build, named):
    done, calls = build(named)
    assert done.returncode == 1
    assert calls == []
    expected = f'segloss: expected numbers in TORCH_CUDA_ARCH_LIST, such as "8.0;9.0+PTX", got {named!r}'
    assert done.stderr.strip() == expected


def test_without_nvcc_the_build_says_so(build):
    done, _ = build(CUDA_HOME="/nowhere")
    assert done.returncode == 1
    expected = "segloss: expected nvcc for SEGLOSS_CUDA=1, found none on PATH or in CUDA_HOME"
    assert done.stderr.strip() == expected


def test_without_the_variable_nothing_of_cuda_is_built(build, tmp_path):
    done, calls = build(SEGLOSS_CUDA="0", CUDA_HOME="/nowhere")
    assert done.returncode == 0, done.stderr
    assert calls == []
    assert "cuda.cpp" not in (tmp_path / "build" / "glue.cpp").read_text()
