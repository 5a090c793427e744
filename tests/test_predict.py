"""predict: the argmax of logits, or masks by a threshold, at their own size or at another one."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import reference
import torch
from test_devices import OTHER
from torch._C import DispatchKeySet

import segloss

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SMALL = (2, 5, 4, 6)


def from_torch(x, size, upsample, align_corners=False):
    return reference.resized(x, size, upsample, align_corners)


# ---- argmax ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(2, 5), (2, 5, 7), (2, 5, 4, 6), (1, 3, 5, 40, 33), (2, 130, 3, 50), (0, 3, 4, 4), (2, 3, 0, 4)]
)
def test_the_class_of_the_largest_logit(shape, dtype):
    x = torch.randn(shape).to(dtype)
    actual = segloss.predict(x)
    assert actual.dtype == torch.uint8
    assert torch.equal(actual, x.argmax(1).to(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("small", "size", "upsample"),
    [
        ((9,), (31,), "linear"),
        ((6, 7), (24, 28), "bilinear"),
        ((6, 7), (4, 15), "bilinear"),
        ((3, 4, 50), (7, 9, 150), "trilinear"),
        ((6, 7), (24, 28), "nearest"),
        ((3, 5, 6), (9, 10, 20), ("nearest", "linear", "linear")),
    ],
)
def test_the_argmax_of_interpolated_logits(small, size, upsample, align_corners, dtype):
    align_corners = align_corners and upsample != "nearest"
    x = torch.randn(2, 7, *small, dtype=torch.float64).to(dtype)
    full = from_torch(x, size, upsample, align_corners)
    actual = segloss.predict(x, size, upsample=upsample, align_corners=align_corners)
    largest = full.topk(2, 1).values
    is_clear = largest[:, 0] - largest[:, 1] > (1e-12 if dtype == torch.float64 else 1e-6)
    assert torch.equal(actual[is_clear], full.argmax(1).to(torch.uint8)[is_clear])
    assert is_clear.float().mean() > 0.999


def test_ties_go_to_the_first_class_and_nan_is_the_largest():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[1.0, 1, 0], [0, 2, 2], [inf, inf, 0], [-inf, -inf, -inf], [0, nan, inf], [nan, nan, 0]])
    assert segloss.predict(x).tolist() == [0, 1, 0, 0, 1, 0]
    assert segloss.predict(x).tolist() == x.argmax(1).tolist()


@pytest.mark.parametrize(
    ("num_classes", "dtype"),
    [(2, torch.uint8), (256, torch.uint8), (257, torch.int16), (32767, torch.int16), (32768, torch.int32)],
)
def test_the_dtype_is_the_smallest_that_holds_the_classes(num_classes, dtype):
    x = torch.zeros(1, num_classes, 3)
    x[:, -1, 1] = 1
    actual = segloss.predict(x)
    assert actual.dtype == dtype
    assert actual.tolist() == [[0, num_classes - 1, 0]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_the_caller_can_choose_the_dtype(dtype):
    x = torch.randn(SMALL)
    assert torch.equal(segloss.predict(x, dtype=dtype), x.argmax(1).to(dtype))


# ---- threshold ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 130])
def test_a_threshold_gives_a_mask_for_each_channel(channels, dtype):
    x = torch.randn(2, channels, 5, 6).to(dtype)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = float("nan"), 0.25
    actual = segloss.predict(x, threshold=0.25)
    assert actual.dtype == torch.bool
    assert torch.equal(actual, x > 0.25)
    assert torch.equal(segloss.predict(x, threshold=0.25, dtype=torch.uint8), (x > 0.25).byte())


def test_a_threshold_of_interpolated_logits():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    actual = segloss.predict(x, (11, 24), upsample="bilinear", threshold=0)
    assert torch.equal(actual, from_torch(x, (11, 24), "bilinear") > 0)


# ---- layouts, out ----


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("threshold", [None, 0.1])
def test_classes_in_any_dimension(dim, threshold):
    x = torch.randn(SMALL)
    expected = segloss.predict(x, (9, 11), upsample="bilinear", threshold=threshold)
    actual = segloss.predict(x.movedim(1, dim), (9, 11), upsample="bilinear", threshold=threshold, dim=dim)
    assert torch.equal(actual if threshold is None else actual.movedim(dim, 1), expected)


@pytest.mark.parametrize("layout", ["channels_last", "strided", "contiguous"])
def test_logits_of_any_layout(layout):
    x = torch.randn(2, 40, 8, 150)
    given = {
        "channels_last": x.to(memory_format=torch.channels_last),
        "strided": x.mT.contiguous().mT,
        "contiguous": x,
    }[layout]
    assert torch.equal(segloss.predict(given), x.argmax(1).byte())
    assert torch.equal(
        segloss.predict(given, (16, 300), upsample="bilinear"), segloss.predict(x, (16, 300), upsample="bilinear")
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_out_of_any_layout(dtype):
    x = torch.randn(2, 3, 5, 6)
    out = torch.zeros(24, 11, 2, dtype=dtype).permute(2, 1, 0)
    assert segloss.predict(x, upsample="bilinear", out=out) is out
    assert torch.equal(out, segloss.predict(x, (11, 24), upsample="bilinear").to(dtype))
    masks = torch.zeros(2, 3, 5, 6, dtype=torch.bool)
    assert torch.equal(segloss.predict(x, threshold=0.0, out=masks), x > 0)


def test_out_in_a_file(tmp_path):
    x = torch.randn(1, 3, 4, 5, 6)
    mapped = np.memmap(tmp_path / "labels", dtype=np.uint8, mode="w+", shape=(1, 8, 10, 12))
    segloss.predict(x, upsample="trilinear", out=torch.from_numpy(mapped))
    mapped.flush()
    written = np.fromfile(tmp_path / "labels", dtype=np.uint8).reshape(1, 8, 10, 12)
    assert np.array_equal(written, segloss.predict(x, (8, 10, 12), upsample="trilinear").numpy())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_memory_is_that_of_the_prediction():
    script = """
        import torch, segloss
        from pathlib import Path
        def memory(kind):
            return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if kind in l).split()[1])
        x = torch.randn(1, 40, 32, 32, 32)
        segloss.predict(x[:, :, :2, :2, :2].contiguous(), (4, 4, 4), upsample="trilinear")
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        result = segloss.predict(x, (160, 160, 160), upsample="trilinear")
        print((memory("VmHWM") - before) * 1024 - result.nbytes)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 10 * 2**20  # the interpolated logits are 655 MB


# ---- no gradient; transforms; other devices ----


def test_a_prediction_has_no_gradient():
    assert not segloss.predict(torch.randn(SMALL, requires_grad=True)).requires_grad


def test_vmap_and_compile():
    x = torch.randn(3, *SMALL)
    predict = lambda x: segloss.predict(x, (9, 11), upsample="bilinear")  # noqa: E731
    expected = torch.stack([predict(each) for each in x])
    assert torch.equal(torch.func.vmap(predict)(x), expected)
    assert torch.equal(torch.compile(predict, backend="aot_eager", fullgraph=True)(x[0]), expected[0])

    def into(x):
        out = torch.zeros(2, 9, 11, dtype=torch.uint8)
        return segloss.predict(x, upsample="bilinear", out=out)

    assert torch.equal(torch.compile(into, backend="aot_eager", fullgraph=True)(x[0]), expected[0])


def test_opcheck():
    code = 2 << 1 | 2 << 3
    torch.library.opcheck(torch.ops.segloss.predict.default, (torch.randn(SMALL), [9, 11], code, None, torch.uint8, 1))
    out = torch.zeros(2, 9, 11, dtype=torch.int64)
    torch.library.opcheck(torch.ops.segloss.predict_into.default, (torch.randn(SMALL), code, None, 1, out))


@pytest.mark.cpu_only
@pytest.mark.parametrize("threshold", [None, 0.1])
@pytest.mark.parametrize(
    ("shape", "size"), [((2, 5, 4, 6), (9, 11)), ((1, 4, 4, 128, 256), (8, 256, 256)), ((2, 5, 4, 6), None)]
)
def test_devices_without_kernels(shape, size, threshold):
    x = torch.randn(shape)
    upsample = None if size is None else {2: "bilinear", 3: "trilinear"}[len(size)]
    expected = segloss.predict(x, size, upsample=upsample, threshold=threshold)
    code = 0 if size is None else sum(2 << (1 + 2 * k) for k in range(len(size)))
    arguments = (x, size or [], code, threshold, expected.dtype, 1)
    actual = torch.ops.segloss.predict.default.redispatch(DispatchKeySet(OTHER), *arguments)
    assert (actual != expected).float().mean() < 1e-5


# ---- bad input ----


X = torch.randn(SMALL)
BAD = {
    "a size alone": (X, {"size": (8, 8)}, ValueError, "Give upsample"),
    "a size alone, with out": (
        X,
        {"size": (4, 6), "out": torch.zeros(2, 4, 6, dtype=torch.uint8)},
        ValueError,
        "Give upsample",
    ),
    "upsample alone": (X, {"upsample": "bilinear"}, ValueError, "Give the size of the result, or out"),
    "a size of other axes": (X, {"size": (8,), "upsample": "bilinear"}, ValueError, "size with 2 numbers"),
    "a size of 0": (X, {"size": (0, 8), "upsample": "bilinear"}, RuntimeError, "should be greater than 0"),
    "a mode of other axes": (X, {"size": (8, 8), "upsample": "linear"}, NotImplementedError, "upsample='bilinear'"),
    "one channel": (X[:, :1], {}, RuntimeError, "Use threshold=0 for the logits of one foreground class"),
    "no class": (X[:, :0], {}, RuntimeError, "expected logits of a class or more"),
    "labels": (X.long(), {}, TypeError, "floating logits"),
    "a list": ([1.0], {}, TypeError, "expected logits to be a torch.Tensor, got list"),
    "a threshold that is no number": (
        X,
        {"threshold": True},
        TypeError,
        "threshold to be a float, a raw logit, got True",
    ),
    "a dtype that is too small": (torch.zeros(1, 300, 2), {"dtype": torch.uint8}, ValueError, "holds 300 classes"),
    "a floating dtype": (X, {"dtype": torch.float32}, TypeError, "an integer dtype"),
    "a dtype that no mask has": (
        X,
        {"threshold": 0.0, "dtype": torch.int32},
        TypeError,
        "bool or uint8 with a threshold",
    ),
    "dim": (X, {"dim": 4}, IndexError, "in [-4, 3], got [2, 5, 4, 6] and 4"),
    "out of another shape": (
        X,
        {"out": torch.zeros(2, 4, 7, dtype=torch.uint8)},
        RuntimeError,
        "out of shape [2, 4, 6]",
    ),
    "out of another size": (
        X,
        {"size": (8, 8), "upsample": "bilinear", "out": torch.zeros(2, 8, 9, dtype=torch.uint8)},
        ValueError,
        "out with the spatial size [8, 8]",
    ),
    "out of another dtype": (
        X,
        {"dtype": torch.int64, "out": torch.zeros(2, 4, 6, dtype=torch.uint8)},
        TypeError,
        "Leave dtype out",
    ),
    "out that is floating": (X, {"out": torch.zeros(2, 4, 6)}, TypeError, "an integer dtype"),
    "out of other samples": (
        X,
        {"upsample": "bilinear", "out": torch.zeros(1, 8, 8, dtype=torch.uint8)},
        ValueError,
        "same samples",
    ),
}


@pytest.mark.parametrize(("x", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_calls_say_what_to_do(x, options, error, message):
    with pytest.raises(error) as caught:
        segloss.predict(x, **options)
    assert message in str(caught.value)
    assert str(caught.value).startswith("predict: ")


def test_out_is_untouched_by_a_bad_call():
    out = torch.full((2, 4, 7), 9, dtype=torch.uint8)
    with pytest.raises(RuntimeError):
        segloss.predict(X, out=out)
    assert (out == 9).all()
