"""python -m segloss.evaluate: folders of NIfTI and PNG files, what is wrong with some of them, and going on."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import segloss
from segloss import SegmentationReport, evaluate

np = pytest.importorskip("numpy")
nibabel = pytest.importorskip("nibabel")
Image = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.cpu_only

AFFINE = np.array([[0.0, 1.5, 0, -20], [-0.7, 0, 0, 30], [0, 0, 3, -40], [0, 0, 0, 1]])
SPACING = (0.7, 1.5, 3.0)


def maps(seed, shape=(7, 6, 5)):
    """A prediction and labels, uint8."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, shape, dtype=np.uint8)
    return np.where(generator.random(shape) < 0.8, labels, 0).astype(np.uint8), labels


def write(path, array, affine=AFFINE):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        nibabel.save(nibabel.Nifti1Image(array, affine), path)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """pred and ref with four cases, whose suffixes differ, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for k in range(4):
        predicted, labels = maps(k)
        write(tmp_path / f"pred/case_{k}.nii{'.gz' if k % 2 else ''}", predicted)
        write(tmp_path / f"ref/case_{k}.nii.gz", labels)
    return tmp_path


def run(*arguments):
    return evaluate.main(["pred", "ref", "--output", "out", *arguments])


def refused(capsys, *arguments):
    """The message of a run that does not start."""
    with pytest.raises(SystemExit) as raised:
        run(*arguments)
    assert raised.value.code == 2
    return capsys.readouterr().err


def report_of(folder, seeds=range(4), **options):
    report = SegmentationReport(3, ignore_index=(), **options)
    for k in seeds:
        tensors = [torch.from_numpy(each)[None, None] for each in maps(k)]
        report.update(*tensors, ids=[f"case_{k}"], spacing=SPACING)
    return report


def summary_of(folder):
    return json.loads((folder / "out/summary.json").read_text())


# ---- a run ----


def test_the_command_writes_and_prints_the_report_of_two_folders(folders):
    command = [sys.executable, "-m", "segloss.evaluate", "pred", "ref", "--names", "background,liver,tumour"]
    command += ["--regions", "organ=1,2", "--surface", "hausdorff_distance_95,surface_dice", "--tolerance", "1"]
    paths = [str(Path(each).parent) for each in segloss.__path__] + os.environ.get("PYTHONPATH", "").split(os.pathsep)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    metrics = {"surface_metrics": ["hausdorff_distance_95", "surface_dice"], "tolerance": 1}
    names = ["background", "liver", "tumour"]
    expected = report_of(folders, names=names, regions={"organ": (1, 2)}, **metrics)
    wrote = "Wrote report.json, cases.csv and summary.json to evaluation."
    assert done.stdout == f"{expected}\n\n{wrote}\n"
    expected.to_csv(folders / "expected.csv")
    expected.to_nnunet(
        folders / "expected.json",
        {f"case_{k}": (f"pred/case_{k}.nii{'.gz' if k % 2 else ''}", f"ref/case_{k}.nii.gz") for k in range(4)},
    )
    assert (folders / "evaluation/cases.csv").read_text() == (folders / "expected.csv").read_text()
    assert (folders / "evaluation/summary.json").read_text() == (folders / "expected.json").read_text()
    stored = SegmentationReport.from_json(folders / "evaluation/report.json")
    assert stored.to_dict() == expected.to_dict()


def test_without_num_classes_the_files_say_it(folders):
    assert run() == 0
    assert list(summary_of(folders)["mean"]) == ["1", "2"]
    assert run("--label-map", "0:0,1:1,2:3") == 0
    assert list(summary_of(folders)["mean"]) == ["1", "2", "3"]
    write(folders / "pred/case_0.nii", maps(0)[1] + 2)
    assert run("--ignore-index", "2") == 0
    assert list(summary_of(folders)["mean"]) == ["1", "2", "3"]  # not 4: there the labels are ignored


@pytest.mark.parametrize("workers", ["1", "3"])
def test_the_number_of_workers_does_not_change_the_report(folders, workers):
    assert run("--workers", workers, "--num-classes", "3", "--surface", "hausdorff_distance") == 0
    stored = SegmentationReport.from_json(folders / "out/report.json")
    assert stored.to_dict() == report_of(folders, surface_metrics=["hausdorff_distance"]).to_dict()


def test_an_option_says_the_spacing_in_place_of_the_headers(folders):
    assert run("--spacing", "1,2,3.5") == 0
    numbers = SegmentationReport.from_json(folders / "out/report.json").cases()["case_0"]["1"]
    assert numbers["reference_volume"] == 7 * (numbers["tp"] + numbers["fn"])


def test_a_spacing_that_does_not_fit_is_reported_for_each_case(folders, capsys):
    assert run("--spacing", "1,2") == 1
    assert (
        "case_0: ValueError: expected a spacing of 3 numbers, one for each axis of the file" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "options"),
    [(["--lesions"], True), (["--lesions", "overlap=0.25,dilation=1,min_volume=3"], {"overlap": 0.25, "dilation": 1})],
)
def test_lesions_are_counted_as_the_options_say(folders, arguments, options):
    options = options if options is True else options | {"min_volume": 3.0}
    assert run("--num-classes", "3", *arguments) == 0
    stored = SegmentationReport.from_json(folders / "out/report.json")
    assert str(stored.to_dict()) == str(report_of(folders, lesion_metrics=options).to_dict())


def test_label_maps_are_of_labels_and_of_predictions(folders):
    for k in range(4):
        predicted, labels = maps(k)
        write(folders / f"ref/case_{k}.nii.gz", labels * 100)
        write(folders / f"pred/case_{k}.nii{'.gz' if k % 2 else ''}", (predicted * 50).astype(np.uint16))
    options = ["--label-map", "0:0,100:1,200:none", "--prediction-map", "0:0,50:1,100:2", "--num-classes", "3"]
    assert run(*options) == 0
    expected = SegmentationReport(3, ignore_index=2)
    for k in range(4):
        expected.update(*[torch.from_numpy(each)[None, None] for each in maps(k)], ids=[f"case_{k}"], spacing=SPACING)
    assert SegmentationReport.from_json(folders / "out/report.json").cases() == expected.cases()
    assert run(*options[:2], "--prediction-map", "0:0,50:1") == 1  # 100 has no class


def test_the_page_shows_what_the_command_prints(tmp_path, monkeypatch, capsys):
    pytest.importorskip("nilearn")
    page = (Path(__file__).parent.parent / "docs/how-to/report.md").read_text(encoding="utf-8")
    (code,) = (each for each in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "blocks" in each)
    command, text = re.search(
        r"^python -m segloss.evaluate (.*?)^```\n\n```text\n(.*?)^```", page, re.M | re.S
    ).groups()
    names = {"torch": torch, "segloss": segloss}
    exec(code, names)
    monkeypatch.chdir(tmp_path)
    for folder, labels in (("predictions", names["predicted"]), ("labels", names["labels"])):
        for case, block in names["blocks"].items():
            write(tmp_path / f"{folder}/{case}.nii", labels[..., block].to(torch.uint8).numpy(), np.diag([2, 2, 2, 1]))
    capsys.readouterr()
    assert evaluate.main(shlex.split(command.replace("\\\n", " "))) == 0
    assert capsys.readouterr().out == text


# ---- files ----


@pytest.mark.parametrize("dtype", [">i2", "int16", "uint16", "int64", "float32", "float64"])
def test_nifti_of_every_dtype_and_byte_order_is_read(folders, dtype):
    predicted, _ = maps(0)
    image = nibabel.Nifti1Image(predicted.astype(dtype), AFFINE, dtype=dtype)
    nibabel.save(image, folders / "pred/case_0.nii")
    assert run() == 0
    assert SegmentationReport.from_json(folders / "out/report.json").cases() == report_of(folders).cases()


def test_scaled_nifti_and_a_trailing_axis_are_read(folders):
    predicted, _ = maps(0)
    path = folders / "pred/case_0.nii"
    write(path, predicted[..., None])
    content = bytearray(path.read_bytes())
    content[112:116] = np.float32(2).tobytes()  # scl_slope
    path.write_bytes(content)
    assert run("--prediction-map", "0:0,1:1,2:1,4:2", "--num-classes", "3") == 0
    with_axis = SegmentationReport.from_json(folders / "out/report.json").cases()["case_0"]
    assert with_axis == report_of(folders).cases()["case_0"]


def png(mode, array):
    if mode == "P":
        image = Image.fromarray(array, "L").convert("P")
        image.putdata(array.flatten().tolist())
        return image
    if mode == "1":
        return Image.fromarray(array > 0)
    return Image.fromarray(array.astype({"L": np.uint8, "I;16": np.uint16}[mode]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_png_of_one_number_for_each_pixel_is_read(tmp_path, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    predicted, labels = maps(0, (9, 8))
    if mode == "1":
        predicted, labels = predicted > 0, labels > 0
    write(tmp_path / "ref/a.png", labels)
    (tmp_path / "pred").mkdir()
    png(mode, predicted).save(tmp_path / "pred/a.PNG")
    assert run("--surface", "hausdorff_distance") == 0
    expected = SegmentationReport(2 if mode == "1" else 3, ignore_index=(), surface_metrics=["hausdorff_distance"])
    expected.update(*[torch.from_numpy(each)[None, None] for each in (predicted, labels)], ids=["a"])
    assert SegmentationReport.from_json(tmp_path / "out/report.json").to_dict() == expected.to_dict()


def broken(folder):
    (folder / "pred/case_1.nii.gz").write_bytes(b"no gzip")
    return "ImageFileError"


def cut(folder):
    (folder / "pred/case_1.nii.gz").unlink()
    path = folder / "pred/case_1.nii"
    write(path, maps(1)[0])
    path.write_bytes(path.read_bytes()[:-10])
    return "OSError: Expected 210 bytes, got 200 bytes"


def empty(folder):
    (folder / "pred/case_1.nii.gz").write_bytes(b"")
    return "Empty file"


def other_shape(folder):
    write(folder / "pred/case_1.nii.gz", maps(1)[0][1:])
    return "expected both files of one shape, got prediction [6, 6, 5] and labels [7, 6, 5]"


def shifted(folder):
    affine = AFFINE.copy()
    affine[0, 3] += 1
    write(folder / "pred/case_1.nii.gz", maps(1)[0], affine)
    return (
        "expected both files on one grid, got voxels that are up to 1 mm apart: prediction with spacing [0.7, 1.5, 3.0]"
    )


def other_spacing(folder):
    write(folder / "pred/case_1.nii.gz", maps(1)[0], AFFINE @ np.diag([1, 1, 2, 1]))
    return "and labels with spacing [0.7, 1.5, 3.0] and affine [0.0, 1.5, 0.0, -20.0"


def flipped(folder):
    write(folder / "pred/case_1.nii.gz", maps(1)[0], AFFINE @ np.diag([-1, 1, 1, 1]))
    return "expected both files on one grid"


def fractions(folder):
    write(folder / "ref/case_1.nii.gz", maps(1)[1] + 0.5)
    return "expected integral labels in ref/case_1.nii.gz, got "


def not_a_number(folder):
    write(folder / "ref/case_1.nii.gz", np.full((7, 6, 5), np.nan, dtype=np.float32))
    return "expected integral labels in ref/case_1.nii.gz, got nan, the first of 210"


def four_axes(folder):
    write(folder / "pred/case_1.nii.gz", np.zeros((7, 6, 5, 2), dtype=np.uint8))
    return "expected an image of two or three axes in pred/case_1.nii.gz, got shape [7, 6, 5, 2]"


def two_spacings(folder):
    for name, array in zip(("pred", "ref"), maps(1), strict=True):
        image = nibabel.Nifti1Image(array, AFFINE)
        image.header["pixdim"][1:4] = 1
        image.header["qform_code"] = 0
        nibabel.save(image, folder / f"{name}/case_1.nii.gz")
    return (
        "expected one spacing in the header of ref/case_1.nii.gz, got [1.0, 1.0, 1.0] in pixdim and [0.7, 1.5, 3.0] in"
    )


def a_bad_label(folder):
    write(folder / "ref/case_1.nii.gz", maps(1)[1] * 100)
    return "SegmentationReport.update: Target 200 is out of bounds"


def colours(folder):
    (folder / "pred/case_1.nii.gz").unlink()
    Image.new("RGB", (6, 7)).save(folder / "pred/case_1.png")
    return "expected a PNG with one number for each pixel in pred/case_1.png, got mode RGB. Convert colours to labels"


FAILURES = [broken, cut, empty, other_shape, shifted, other_spacing, flipped, fractions, not_a_number, four_axes]
FAILURES += [two_spacings, a_bad_label, colours]


@pytest.mark.parametrize("spoil", FAILURES, ids=lambda each: each.__name__)
def test_a_bad_file_is_reported_and_the_others_go_on(folders, capsys, spoil):
    message = spoil(folders)
    assert run("--num-classes", "3") == 1
    output = capsys.readouterr()
    assert "3 cases" in output.out
    line, listed = (each for each in output.err.splitlines() if "case_1: " in each)
    assert line.startswith("case_1: ")
    assert message in line
    assert listed == f"  {line}"
    assert "Failed, 1 of 4 cases:" in output.err
    stored = SegmentationReport.from_json(folders / "out/report.json")
    assert stored.cases() == report_of(folders, (0, 2, 3)).cases()


def test_the_affines_can_be_ignored(folders):
    shifted(folders)
    write(folders / "pred/case_2.nii", maps(2)[0], AFFINE + 1e-3)  # rounded
    assert run("--ignore-affine") == 0
    assert SegmentationReport.from_json(folders / "out/report.json").cases() == report_of(folders).cases()


def test_small_differences_of_affines_are_none(folders):
    affine = AFFINE.copy()
    affine[:3, 3] += 0.01
    write(folders / "pred/case_2.nii", maps(2)[0], affine)
    assert run() == 0


def test_files_without_a_partner_are_named(folders, capsys):
    (folders / "pred/case_3.nii.gz").rename(folders / "pred/other.nii.gz")
    (folders / "pred/notes.txt").write_text("")
    (folders / "pred/.hidden.nii.gz").write_text("")
    assert run() == 1
    errors = capsys.readouterr().err
    assert errors == (
        "Predictions without labels, left out:\n  pred/other.nii.gz\n"
        "Labels without a prediction:\n  ref/case_3.nii.gz\n"
    )
    assert run("--allow-missing") == 0


def test_two_files_of_one_case_are_an_error(folders, capsys):
    write(folders / "pred/case_1.nii", maps(1)[0])
    message = "evaluate: expected one file for each case, got case_1.nii and case_1.nii.gz in pred. Remove one"
    assert message in refused(capsys)


def test_folders_that_have_no_file_in_common_are_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "evaluate: expected a folder, got pred" in refused(capsys)
    write(tmp_path / "pred/a.png", maps(0, (4, 4))[0])
    write(tmp_path / "ref/b.png", maps(0, (4, 4))[0])
    message = (
        "evaluate: expected files of one name in both folders, ending in .nii.gz, .nii, .png, got 1 in pred and 1 in"
    )
    assert message in refused(capsys)


@pytest.mark.parametrize(("module", "name", "suffix"), [("nibabel", "nibabel", ".nii"), ("PIL", "pillow", ".png")])
def test_a_missing_package_is_named_before_anything_is_read(tmp_path, monkeypatch, capsys, module, name, suffix):
    monkeypatch.chdir(tmp_path)
    for folder in ("pred", "ref"):
        write(tmp_path / f"{folder}/a{suffix}", maps(0, (4, 4))[0], np.eye(4))
    monkeypatch.setitem(sys.modules, module, None)
    errors = refused(capsys)
    assert f"evaluate: expected {name} to be installed" in errors
    assert 'Use `pip install "torch-segloss[evaluate]"`' in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--label-map", "0:0,1:1,2:5000"],
            "evaluate: expected labels below 1024 where --num-classes is not given, got 5000",
        ),
        (
            ["--prediction-map", "0:0,1:1,2:5000"],
            "got 5000 in case_0. Give --num-classes, or --label-map and --predict",
        ),
        (["--workers", "0"], "--workers: expected 1 or more, got 0"),
        (["--ignore-index", "a"], "argument --ignore-index: invalid list of ints value: 'a'"),
        (["--label-map", "4"], "argument --label-map: invalid map value: '4'"),
        (["--regions", "a=b"], "argument --regions: invalid region value: 'a=b'"),
        (["--lesions", "size=3"], "expected each key of lesion_metrics to be 'connectivity', 'overlap', "),
        (["--lesions", "3"], "argument --lesions: invalid list of options value: '3'"),
        (["--surface", "hd"], "expected each of surface_metrics to be 'hausdorff_distance', "),
        (["--num-classes", "3", "--names", "a,b"], "expected 3 names, one for each class"),
        (
            ["--regions", "a=1", "--regions", "a=1,2"],
            "evaluate: expected a name of its own for each of --regions, got 'a' twice",
        ),
    ],
)
def test_a_bad_option_is_refused(folders, capsys, arguments, message):
    assert message in refused(capsys, *arguments)


# ---- going on ----


def counting(monkeypatch, error_at=None, error=None):
    """The cases that are measured, as a list that grows; the one of the number error_at raises instead."""
    measured, original = [], evaluate.Run.measured

    def measure(self, pair):
        if len(measured) == error_at:
            error()
        measured.append(pair.case)
        return original(self, pair)

    monkeypatch.setattr(evaluate.Run, "measured", measure)
    return measured


def interrupt():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)  # the main thread is interrupted
    raise RuntimeError


@pytest.mark.parametrize("error", [interrupt, terminate], ids=lambda each: each.__name__)
def test_a_run_that_was_interrupted_goes_on(folders, monkeypatch, capsys, error):
    with monkeypatch.context() as patch:
        counting(patch, 2, error)
        assert run("--num-classes", "3", "--workers", "1") == 130
    assert "Interrupted after 2 of 4 cases. Use --resume to go on." in capsys.readouterr().err
    assert not (folders / "out/summary.json").exists()
    measured = counting(monkeypatch)
    assert run("--num-classes", "3", "--resume") == 0
    assert sorted(measured) == ["case_2", "case_3"]
    assert "Taken over: 2 of 4 cases." in capsys.readouterr().err
    stored = SegmentationReport.from_json(folders / "out/report.json")
    assert stored.to_dict() == report_of(folders).to_dict()


def test_files_that_changed_are_measured_again_and_those_that_are_gone_left_out(folders, monkeypatch):
    assert run("--num-classes", "3") == 0
    write(folders / "pred/case_1.nii.gz", maps(9)[0])
    (folders / "pred/case_3.nii.gz").unlink()
    measured = counting(monkeypatch)
    assert run("--num-classes", "3", "--resume", "--allow-missing") == 0
    assert measured == ["case_1"]
    assert len(SegmentationReport.from_json(folders / "out/report.json")) == 3


def test_without_resume_all_is_measured_anew(folders, monkeypatch):
    assert run("--num-classes", "3") == 0
    measured = counting(monkeypatch)
    assert run("--num-classes", "3") == 0
    assert len(measured) == 4


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (["--num-classes", "3"], ["--num-classes", "4"], "measure the same, got num_classes=4 and num_classes=3"),
        (["--spacing", "1,1,1"], [], "to be resumed with the same options, got --spacing"),
        (["--prediction-map", "0:0,1:1,2:2"], [], "to be resumed with the same options, got --prediction-map"),
        (["--ignore-affine"], [], "to be resumed with the same options, got --ignore-affine"),
    ],
)
def test_a_run_with_other_options_is_not_taken_over(folders, capsys, before, after, message):
    assert run(*before) == 0
    capsys.readouterr()
    assert message in refused(capsys, *after, "--resume")


def test_a_report_that_is_no_report_is_not_taken_over(folders, capsys):
    (folders / "out").mkdir()
    (folders / "out/report.json").write_text("{")
    assert "SegmentationReport.from_json: expected a report that to_json wrote, got out/report.json" in refused(
        capsys, "--resume"
    )


# ---- the bar ----


class Terminal:
    def __init__(self, is_terminal):
        self.text, self.is_terminal = "", is_terminal

    def isatty(self):
        return self.is_terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_a_bar_is_shown_on_a_terminal_alone():
    for is_terminal in (True, False):
        terminal = Terminal(is_terminal)
        say = evaluate.Progress(2, terminal)
        say("case_0: bad")
        say(done=1)
        say(done=2)
        assert "case_0: bad\n" in terminal.text
        assert ("[###############               ] 1/2, " in terminal.text) == is_terminal
    assert terminal.text == "case_0: bad\n"


def test_the_module_is_loaded_when_it_is_asked_for():
    assert segloss.evaluate is evaluate
