"""What segloss promises for all that it computes: the same bits whatever else happens; and clear errors at import."""

import re
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import reference
import torch
from losses import METRICS, VARIANTS
from tolerances import CONFIDENT_RTOL, assert_relative

import segloss
from segloss import _glue


def run(code, **options):
    """Runs the code in a Python process of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, **options
    )


# ---- confident voxels ----


@pytest.mark.parametrize("num_classes", [2, 3, 4, 19, 200])
def test_the_gradient_of_every_class_of_a_confident_voxel_keeps_its_digits(num_classes):
    """The other classes' probabilities are as small as 1e-35."""
    margin = torch.linspace(0, 80, 321)
    x = -3 * torch.rand(len(margin), num_classes)
    x[:, 1] = margin
    labels = torch.ones(len(margin), dtype=torch.uint8)
    expected = reference.value_and_gradient(reference.cross_entropy, x, labels, reduction="sum")
    x.requires_grad_()
    loss = segloss.cross_entropy(x, labels, reduction="sum")
    assert_relative(loss.detach(), expected[0], CONFIDENT_RTOL)
    assert_relative(torch.autograd.grad(loss, x)[0], expected[1], CONFIDENT_RTOL)


# ---- the same bits ----

LOSSES = VARIANTS | {"weighted cross_entropy": partial(segloss.cross_entropy, weight=torch.tensor([0.3, 2.0, 0.7]))}
NAMES = [*LOSSES, *METRICS]


@pytest.fixture(scope="module")
def volume():
    """Logits and labels of two samples, in several chunks for several threads."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    x = torch.randn(2, 3, 40, 45, 50, generator=generator)
    labels = torch.randint(3, (2, 1, 40, 45, 50), generator=generator).to(torch.uint8)
    labels[:, :, 3] = 255
    return x, labels


def bits(name, x, labels):
    """Value and gradient, or the counts."""
    if name in METRICS:
        return [METRICS[name](x, labels, ignore_index=255)]
    x = x.detach().requires_grad_()
    value = LOSSES[name](x, labels, ignore_index=255)
    return [value.detach(), *torch.autograd.grad(value, x)]


def assert_same_bits(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_for_any_number_of_threads_any_memory_format_and_again(name, volume, num_threads):
    x, labels = volume
    channels_last = x.contiguous(memory_format=torch.channels_last_3d)
    num_threads(1)
    expected = bits(name, x, labels)
    for threads in (1, 2, 3, 8):
        num_threads(threads)
        assert_same_bits(bits(name, x, labels), expected)
        assert_same_bits(bits(name, channels_last, labels), expected)


@pytest.mark.cpu_only
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_from_two_python_threads_at_once(name, volume):
    x, labels = volume
    mirrored = x.flip(1).contiguous()
    expected = [bits(name, x, labels), bits(name, mirrored, labels)]
    with ThreadPoolExecutor(2) as pool:
        actual = list(pool.map(lambda input: bits(name, input, labels), [x, mirrored] * 5))
    for i, result in enumerate(actual):
        assert_same_bits(result, expected[i % 2])


# ---- fork ----

FORKS = {
    "os.fork": """
        child = os.fork()
        if child == 0:
            os._exit(not same(0))
        assert os.waitpid(child, 0)[1] == 0
    """,
    "multiprocessing": """
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert all(pool.map(same, range(4)))
    """,
    "DataLoader": """
        class Volumes(torch.utils.data.Dataset):
            __len__ = lambda self: 4
            __getitem__ = same

        assert all(torch.utils.data.DataLoader(Volumes(), num_workers=2, multiprocessing_context="fork"))
    """,
}


@pytest.mark.cpu_only
@pytest.mark.skipif(sys.platform != "linux", reason="macOS forks no process by default, Windows none at all")
@pytest.mark.parametrize("how", FORKS)
def test_a_forked_process_gives_the_same_bits_after_the_threads_were_used(how):
    """OpenMP's threads do not exist in the child; torch's own operators wait for them forever."""
    setup = """
        import multiprocessing, os, signal
        import torch, segloss

        def bits():
            x = logits.detach().requires_grad_()
            loss = segloss.dice_ce_loss(x, labels)
            results = loss.detach(), segloss.accuracy(x, labels), torch.autograd.grad(loss, x)[0]
            return [result.numpy().tobytes() for result in results]  # torch.equal would wait

        def same(*_):
            return bits() == expected

        os.register_at_fork(after_in_child=lambda: signal.alarm(60))
        torch.set_num_threads(3)
        logits, labels = torch.randn(2, 3, 100_000), torch.randint(3, (2, 100_000))
        expected = bits()
        assert len(os.listdir("/proc/self/task")) > 2
    """
    done = run(textwrap.dedent(setup) + textwrap.dedent(FORKS[how]), timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the allocator of torch is left alone")
def test_a_fork_while_another_thread_allocated_a_gradient_deadlocked_the_child():
    """A few of a hundred children waited forever."""
    done = run(
        """
        import os, signal, sys, threading
        import torch, segloss
        sys.path.append("tests")
        from operators import options_of

        def backward(num_voxels):
            logits, labels = torch.zeros(1, 2, num_voxels), torch.zeros(1, num_voxels, dtype=torch.uint8)
            tensors = torch.ones(()), torch.ones((), dtype=torch.double), "loss", logits, labels, None, None
            options = options_of("cross_entropy", reduction=2)
            return lambda: torch.ops.segloss.cross_entropy_backward(*tensors, *options)

        small, large = backward(2**18), backward(2**19)

        def alternate():  # memory of the one is given back to the system for the other
            while not done:
                large()
                small()

        def fork():
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                small()
                os._exit(0)
            return child

        torch.set_num_threads(1)
        done = False
        threads = [threading.Thread(target=alternate) for _ in range(3)]
        for thread in threads:
            thread.start()
        children = [fork() for _ in range(100)]
        done = True
        for thread in threads:
            thread.join()
        assert not any(os.waitpid(child, 0)[1] for child in children)
        """,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


# ---- threads ----


@pytest.mark.cpu_only
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_loss_takes_as_many_threads_as_torch_was_told():
    done = run(
        """
        import os
        import torch, segloss

        torch.set_num_threads(1)
        logits, labels = torch.zeros(1, 2, 500_000), torch.zeros(1, 500_000, dtype=torch.uint8)
        for threads in (1, 2, 3):  # they stay when they are done
            torch.set_num_threads(threads)
            before = len(os.listdir("/proc/self/task"))
            segloss.cross_entropy(logits, labels)
            print(len(os.listdir("/proc/self/task")) - before)
        """
    )
    assert done.stdout.split() == ["0", "1", "1"], done.stderr


@pytest.mark.cpu_only
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_segloss_loads_no_library_but_its_own_two():
    """Another OpenMP than torch's would have threads of its own, which torch.set_num_threads does not reach."""
    done = run(
        r"""
        import re
        import torch

        def libraries():
            with open("/proc/self/maps") as maps:
                return set(re.findall(r"/\S+[.]so\S*", maps.read()))

        before = libraries()
        import segloss
        segloss.cross_entropy(torch.zeros(1, 2, 500_000), torch.zeros(1, 500_000, dtype=torch.uint8))
        print(*sorted(path.rsplit("/", 1)[1] for path in libraries() - before))
        """
    )
    assert done.stdout.split() == sorted(["_kernels.so", f"{_glue.name(torch.__version__)}.so"]), done.stderr


# ---- import ----


@pytest.mark.cpu_only
@pytest.mark.parametrize("version", ["2.9.1", "2.99.0", "2.13.0a0+git123", "2.13.0.dev20260101+cpu"])
def test_a_torch_that_the_operators_were_not_compiled_for_is_named(version):
    """Without this check, the loader names a missing symbol, or the process ends."""
    code = f"""
        import torch
        torch.__version__ = {version!r}
        try:
            import segloss
        except ImportError as error:
            print(error)
    """
    done = run(code)
    minor = ".".join(torch.__version__.split(".")[:2])
    assert re.match(
        rf"segloss: expected torch .*{minor}.*, which .* has compiled operators for, got torch ", done.stdout
    )
    assert f"got torch {version}. To compile them for this torch: " in done.stdout, done.stderr
    assert "pip install --no-build-isolation --no-binary torch-segloss torch-segloss\n" in done.stdout


def test_releases_of_a_minor_version_share_their_operators_and_nothing_else_does():
    names = {version: _glue.name(version) for version in ("2.13.0", "2.13.1", "2.13.0+cu126", "2.13.1.post2+rocm7")}
    assert set(names.values()) == {"_C_torch2_13"}
    others = ("2.14.0", "2.1.3", "2.13.0a0+git123", "2.13.0a0+git124", "2.13.0.dev20260101", "2.13.0rc1")
    assert len({_glue.name(version) for version in others} - set(names.values())) == len(others)


@pytest.mark.cpu_only
def test_another_patch_of_the_same_torch_is_welcome():
    version = ".".join(torch.__version__.split(".")[:2]) + ".99+cu126"
    done = run(f"import torch; torch.__version__ = {version!r}; import segloss; print(segloss.get_isa())")
    assert done.stdout.strip() == segloss.get_isa(), done.stderr


@pytest.mark.cpu_only
def test_a_source_tree_that_is_not_built_says_how_to_build_it(tmp_path):
    source = Path(segloss.__file__).parent
    shutil.copytree(source, tmp_path / "segloss", ignore=shutil.ignore_patterns("*.so"))
    done = run("import segloss", cwd=tmp_path)
    assert f"ImportError: segloss: expected compiled operators in {tmp_path / 'segloss'}, found none" in done.stderr
    assert "Compile them: pip install --no-build-isolation --editable ." in done.stderr


def test_the_source_folder_beside_an_installation_says_to_go_elsewhere(tmp_path):
    source, installed = Path(segloss.__file__).parent, tmp_path / "site" / "torch_segloss-0.1.0.dist-info"
    shutil.copytree(source, tmp_path / "segloss", ignore=shutil.ignore_patterns("*.so"))
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-segloss\nVersion: 0.1.0\n")
    (installed / "RECORD").write_text("segloss/_C_torch2_13.so,,\n")
    (tmp_path / "torch_segloss.egg-info").mkdir()  # as a build leaves it
    (tmp_path / "torch_segloss.egg-info" / "PKG-INFO").write_text("Name: torch-segloss\nVersion: 0.1.0\n")
    done = run(f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import segloss", cwd=tmp_path)
    assert "found none: this is the source folder. Start Python in another folder" in done.stderr


BUILDS = {
    "expected setuptools 77 or newer, got 65.5.0: pip install": "setuptools.__version__ = '65.5.0'",
    "expected torch in the environment that builds, found none.": "importlib.util.find_spec = lambda name: None",
    "expected Linux or macOS, got Windows": "sys.platform = 'win32'",
}


@pytest.mark.cpu_only
@pytest.mark.parametrize("message", BUILDS)
def test_a_build_that_cannot_succeed_says_why(message):
    source = Path(__file__).resolve().parent.parent
    code = "import importlib.util, runpy, sys, setuptools.command.bdist_wheel, setuptools.command.build_ext\n"
    done = run(f"{code}{BUILDS[message]}\nrunpy.run_path('setup.py')", cwd=source)
    assert done.returncode == 1
    assert done.stderr.startswith(f"segloss: {message}"), done.stderr


@pytest.mark.cpu_only
def test_another_distribution_of_this_name_is_warned_of(tmp_path):
    (tmp_path / "segloss-9.1.dist-info").mkdir()
    (tmp_path / "segloss-9.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: segloss\nVersion: 9.1\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import segloss"
    done = run(code)
    assert "UserWarning: segloss: the distribution segloss 9.1, of another project, is installed" in done.stderr
    assert "pip uninstall --yes segloss torch-segloss, then pip install torch-segloss" in done.stderr


# ---- modules for other packages ----


@pytest.mark.cpu_only
def test_import_segloss_loads_no_module_for_another_package_until_it_is_named():
    done = run("""
        import sys, segloss
        names = ("monai", "nnunetv2", "torchmetrics", "transformers", "segmentation_models_pytorch")
        names += ("matplotlib", "nibabel", "PIL")
        own = ("evaluate", "monai", "nnunet", "smp", "torchmetrics", "transformers")
        print([name for name in (*names, *(f"segloss.{each}" for each in own)) if name in sys.modules])
        print(segloss.nnunet.TopKLoss.__name__, "nnunetv2" in sys.modules)
        try:
            segloss.keras
        except AttributeError as error:
            print(error)
    """)
    assert done.stdout.splitlines() == ["[]", "TopKLoss False", "module 'segloss' has no attribute 'keras'"], (
        done.stderr
    )
