"""tools/gpu_check.sh without a GPU: what it says then, and its commands where a card and its tools only seem to be."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.skipif(not (shutil.which("bash") and shutil.which("timeout")), reason="bash or timeout is not on PATH"),
]

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tools" / "gpu_check.sh"

TOOLS = {
    "nvidia-smi": "echo 'NVIDIA H100 80GB HBM3, 9.0, 580.1'",
    "python": """
echo "python $*" | head -n 1 >> "$CALLS"
case "$*" in
setup.py*) echo "architecture $TORCH_CUDA_ARCH_LIST" >> "$CALLS" ;;
-c*) echo torch 2.11.0 on a card ;;
-m*) echo 12 passed in 3.4s ;;
benchmarks/bench.py*) echo "a card, 16 threads, segloss's CUDA kernels, torch 2.11.0"; echo '{}' > "$OUT/bench.json" ;;
benchmarks/report.py*) echo the table of figures ;;
tools/gpu_counters.py) echo counter_1,counter_2 ;;
tools/gpu_counters.py*) echo the table of counters ;;
esac
""",
    "compute-sanitizer": """
echo "compute-sanitizer $*" >> "$CALLS"
[ $2 = memcheck ] && echo '========= ERROR SUMMARY: 0 errors'
[ $2 = racecheck ] && echo '========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)' || true
""",
    "ncu": """
echo "ncu $*" >> "$CALLS"
echo '"0","a kernel"' > "$OUT/profile.csv"
""",
}


@pytest.fixture
def check(tmp_path):
    """Runs the script with tools that only note how they are called; returns its exit status, lines and their calls."""

    def run(changed=(), **environment):
        tools = tmp_path / "bin"
        tools.mkdir()
        for name, body in (TOOLS | dict(changed)).items():
            (tools / name).write_text(f"#!/bin/sh\n{body}\n")
            (tools / name).chmod(0o755)
        paths = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": tools / "python", "CALLS": tmp_path / "calls"}
        settings = os.environ | paths | {"OUT": tmp_path / "out"} | environment
        done = subprocess.run([SCRIPT], env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return done.returncode, done.stdout.splitlines(), calls

    return run


NO_CARD = {"nvidia-smi": "echo 'NVIDIA-SMI has failed' >&2; exit 9"}


def test_without_a_gpu_it_says_so_in_one_line_and_ends_with_status_3(check):
    assert check(NO_CARD) == (3, ["gpu_check.sh: expected a GPU, nvidia-smi finds none"], [])


def test_an_unknown_step_is_refused(check):
    status, (line,), calls = check(STEPS="build drive")
    assert (status, calls) == (2, [])
    assert re.fullmatch(r"gpu_check\.sh: expected steps out of .*, got drive", line)


def test_it_runs_every_step_in_order_for_the_architecture_of_the_card(check):
    status, _, calls = check()
    assert status == 0
    build, architecture, probe, tests, first, second, bench, counters, ncu, table_of_counters, table = calls
    assert build == "python setup.py --quiet build_ext --inplace"
    assert architecture == "architecture 9.0"
    assert probe.startswith("python -c")
    assert re.match(r"python -m pytest .* -k cuda tests/test_cuda\.py tests/test_contract\.py ", tests)
    assert {call.split()[2] for call in (first, second)} == {"memcheck", "racecheck"}  # at the same time
    assert re.match(r"compute-sanitizer --tool \w+ .*/python tools/gpu_calls\.py small$", first)
    assert re.match(r"python benchmarks/bench\.py --device cuda --quick --json .*/bench\.json$", bench)
    assert counters == "python tools/gpu_counters.py"
    assert re.match(r"ncu .*--metrics counter_1,counter_2 .*/python tools/gpu_calls\.py large$", ncu)
    assert re.match(r"python tools/gpu_counters\.py .*/profile\.csv$", table_of_counters)
    assert re.match(r"python benchmarks/report\.py .*/bench\.json$", table)


def test_each_step_prints_one_line_and_the_tables_come_last(check):
    _, lines, _ = check()
    card, build, tests, sanitizer, bench, profile = lines[:6]
    assert card == "NVIDIA H100 80GB HBM3, 9.0, 580.1"
    assert re.fullmatch(r"build: ok, \d+ s\. torch 2\.11\.0 on a card", build)
    assert re.fullmatch(r"tests: ok, \d+ s\. 12 passed in 3\.4s", tests)
    assert re.fullmatch(r"sanitizer: ok, \d+ s\. .*ERROR SUMMARY: 0 errors.*", sanitizer)
    assert "racecheck:  RACECHECK SUMMARY: 0 hazards displayed" in sanitizer
    assert re.fullmatch(r"bench: ok, \d+ s\. a card, 16 threads, .*", bench)
    assert re.fullmatch(r"profile: ok, \d+ s\. 1 launches", profile)
    assert lines[6:] == ["", *lines[:6], "the table of counters", "the table of figures"]


def test_some_steps_can_be_picked(check):
    status, lines, calls = check(STEPS="bench table")
    assert status == 0
    assert [call.split()[1] for call in calls] == ["benchmarks/bench.py", "benchmarks/report.py"]
    assert len(lines) == 6


def test_a_failed_step_shows_the_end_of_its_log_and_the_others_run(check):
    python = TOOLS["python"].replace("echo 12 passed in 3.4s", "echo FAILED test_this; exit 1")
    status, lines, _ = check({"python": python})
    assert status == 1
    assert lines[2].startswith("tests: failed, ")
    at = next(n for n, line in enumerate(lines) if line.startswith("---- the end of "))
    assert lines[at + 1] == "FAILED test_this"
    assert lines[-1] == "the table of figures"


def test_nothing_runs_after_a_failed_build(check):
    python = TOOLS["python"].replace("-c*) echo torch 2.11.0 on a card", "-c*) echo no CUDA kernels; exit 1")
    status, lines, calls = check({"python": python})
    assert status == 1
    assert not [call for call in calls if "pytest" in call or "bench" in call]
    assert lines[1].startswith("build: failed, ")


def test_a_step_that_takes_too_long_is_stopped(check):
    status, lines, _ = check({"timeout": "exit 124"}, STEPS="tests")
    assert status == 1
    assert lines[1].startswith("tests: stopped after 120 s")


def test_a_tool_that_cannot_see_the_card_is_skipped(check):
    sanitizer = "echo '========= Error: Device not supported'; exit 1"
    ncu = "echo '==ERROR== ERR_NVGPUCTRPERM' > \"$OUT/profile.csv\"; exit 1"
    status, lines, _ = check({"compute-sanitizer": sanitizer, "ncu": ncu}, STEPS="sanitizer profile")
    assert status == 0
    assert [line.split(",")[0] for line in lines[1:]] == ["sanitizer: skipped", "profile: skipped"]


def test_the_time_of_all_steps_is_less_than_nine_minutes():
    limits = re.search(r"SECONDS_FOR=\((.*)\)", SCRIPT.read_text())[1]
    assert 400 < sum(map(int, re.findall(r"=(\d+)", limits))) < 540


def test_it_runs_the_makefiles_tests_of_values_and_gradients():
    def listed(text, start, end):
        return re.sub(r"\\\n", " ", text.split(start)[1].split(end)[0]).split()

    of_makefile = listed((ROOT / "Makefile").read_text(), "NUMBERS := $(patsubst %,tests/test_%.py,", ")")
    assert listed(SCRIPT.read_text(), 'export NUMBERS="', '"') == of_makefile


def test_the_script_has_no_warnings():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not on PATH")
    subprocess.run(["shellcheck", SCRIPT], check=True)


def test_the_calls_that_the_tools_watch_are_right():
    command = [sys.executable, ROOT / "tools" / "gpu_calls.py", "small", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 24


def module_of(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_counters_shows_each_kernel_of_a_microsecond_or_more():
    counters = module_of(ROOT / "tools" / "gpu_counters.py")
    values = dict.fromkeys(counters.metrics(), "1.0") | {
        "dram__bytes_read.sum": "134,217,728",
        "dram__bytes_write.sum": "134,217,728",
        "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "7.25",
    }

    def line(cells):
        return ",".join(f'"{cell}"' for cell in cells)

    def launch(number, kernel, nanoseconds):
        return line([number, kernel, *(values | {"gpu__time_duration.sum": nanoseconds}).values()])

    kernel = "void (anonymous namespace)::warp_cross_entropy<float, (int)4>(segloss_cross_entropy, long, Totals *)"
    head = line(["ID", "Kernel Name", *(values | {"gpu__time_duration.sum": ""})])
    units = line(["", "", *("unit" for _ in values)])
    lines = ["==PROF== Connected to process 1", head, units, launch(0, kernel, "40,000"), launch(1, "tiny", "512")]
    (row,) = counters.rows(lines)
    assert row[:4] == ["warp_cross_entropy<float, 4>", "134.2", "134.2", "40.0"]
    assert row[-2] == "6.71"
    assert row[-1].startswith("long_scoreboard 7.2")
