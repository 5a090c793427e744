"""The tables in docs/coming-from: what reproduces the losses of PyTorch, MONAI, nnU-Net, SMP and kornia, line by line.

PyTorch and MONAI are the packages themselves; the losses of the others are written out below, under their names and
keywords. If a line has a remark on a difference, its data do not show it, and a test of its own does.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from monai import losses as monai
from monai.transforms import ConvertToMultiChannelBasedOnBratsClasses
from tolerances import assert_close
from torch import Tensor, nn
from torch.nn import functional as F

import segloss

PAGES = Path(__file__).parent.parent / "docs" / "coming-from"
PAGE_OF = {"PyTorch": "pytorch.md", "MONAI": "monai.md", "nnU-Net": "nnunet.md", "SMP": "smp.md", "kornia": "kornia.md"}

Loss = Callable[..., Tensor]


# ---- the packages' losses, by their formulas -------------------------------------------------------------------------


def one_hot(target: Tensor, x: Tensor) -> Tensor:
    """Labels [N, 1, *] or [N, *] as [N, C, *]; a mask for each class as it is."""
    if target.shape == x.shape:
        return target.double()
    return F.one_hot(target.reshape(len(x), *x.shape[2:]).long(), x.shape[1]).movedim(-1, 1).double()


def overlap(p: Tensor, g: Tensor, valid: Tensor | float, over_batch: bool) -> tuple[Tensor, Tensor, Tensor]:
    """True positives, false positives and false negatives, [N, C] or over the batch [C]."""
    dims = [0, *range(2, p.dim())] if over_batch else list(range(2, p.dim()))
    return (valid * p * g).sum(dims), (valid * p * (1 - g)).sum(dims), (valid * (1 - p) * g).sum(dims)


def softmax(x: Tensor) -> Tensor:
    return x.softmax(1)


def nnunet_dice(apply_nonlin, batch_dice: bool = False, do_bg: bool = True, smooth: float = 1.0, ddp=True) -> Loss:
    assert not (batch_dice and ddp), "expected ddp=False in a single process"

    def loss(x: Tensor, y: Tensor, valid: Tensor | float = 1.0) -> Tensor:
        tp, fp, fn = overlap(apply_nonlin(x), one_hot(y, x), valid, batch_dice)
        dice = (2 * tp + smooth) / (2 * tp + fp + fn + smooth).clamp_min(1e-8)
        return -dice[..., 0 if do_bg else 1 :].mean()

    return loss


def nnunet_cross_entropy(**options) -> Loss:
    return lambda x, y: F.cross_entropy(x, y[:, 0].long(), **options)


def nnunet_topk(k: float = 10, **options) -> Loss:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        losses = F.cross_entropy(x, y[:, 0].long(), reduction="none", **options).flatten()
        return losses.topk(int(len(losses) * k / 100)).values.mean()

    return loss


def nnunet_dice_and(cross_entropy: Callable[..., Loss]) -> Callable[..., Loss]:
    """Soft Dice plus a loss of labels. Ignored voxels are in neither; if all are ignored, the second is left out."""

    def dice_and(
        dice_options: dict, ce_options: dict, weight_ce: float = 1, weight_dice: float = 1, ignore_label: int = -100
    ) -> Loss:
        ce, dice = cross_entropy(**ce_options, ignore_index=ignore_label), nnunet_dice(softmax, **dice_options)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            valid = y != ignore_label
            second = weight_ce * ce(x, y) if valid.any() else 0
            return second + weight_dice * dice(x, y.masked_fill(~valid, 0), valid)

        return loss

    return dice_and


def nnunet_dice_and_binary_cross_entropy(bce_options: dict, dice_options: dict, use_ignore_label: bool = False) -> Loss:
    """The target is a mask for each class, and with `use_ignore_label` one more for the voxels to ignore."""
    dice = nnunet_dice(torch.sigmoid, **dice_options)

    def loss(x: Tensor, m: Tensor) -> Tensor:
        if not use_ignore_label:
            return F.binary_cross_entropy_with_logits(x, m.double(), **bce_options) + dice(x, m)
        m, valid = m[:, :-1], m[:, -1:] != 1
        bce = F.binary_cross_entropy_with_logits(x, m.double(), **bce_options, reduction="none")
        return (bce * valid).sum() / valid.sum() + dice(x, m, valid)

    return loss


def nnunet_deep_supervision(loss: Loss, weights: list[float]) -> Loss:
    return lambda xs, ys: sum(w * loss(x, y) for x, y, w in zip(xs, ys, weights, strict=True) if w)


def smp_valid(target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """The target with 0 for ignored voxels, and which voxels are not ignored."""
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    return target.masked_fill(~valid, 0), valid


def smp_mean(losses: Tensor, class_weights: Tensor | None) -> Tensor:
    return losses.mean() if class_weights is None else (losses * class_weights).sum() / class_weights.sum()


def smp_tversky(
    mode: str, alpha=0.5, beta=0.5, gamma=1.0, smooth=0.0, log_loss=False, ignore_index=None, class_weights=None
) -> Loss:
    """The sums are over the batch; the loss of a class without a voxel is 0."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        y, valid = smp_valid(y, ignore_index)
        p, valid = (softmax(x), valid.unsqueeze(1)) if mode == "multiclass" else (x.sigmoid(), valid)
        g = one_hot(y, x)
        tp, fp, fn = overlap(p, g, valid.double(), over_batch=True)
        score = (tp + smooth) / (tp + alpha * fp + beta * fn + smooth).clamp_min(1e-7)
        losses = -score.clamp_min(1e-7).log() if log_loss else 1 - score
        return smp_mean(losses * (tp + fn > 0), class_weights) ** gamma

    return loss


def smp_dice(mode: str, **options) -> Loss:
    return smp_tversky(mode, 0.5, 0.5, **options)


def smp_jaccard(mode: str, **options) -> Loss:
    return smp_tversky(mode, 1.0, 1.0, **options)


def binary_focal(x: Tensor, g: Tensor, gamma: float) -> Tensor:
    """(1 - q)^gamma * -log q for each element, q the probability of its label 0 or 1."""
    bce = F.binary_cross_entropy_with_logits(x, g, reduction="none")
    return (1 - (-bce).exp()) ** gamma * bce


def smp_focal(mode: str, alpha=None, gamma: float = 2.0, ignore_index=None, class_weights=None) -> Loss:
    """One class against the rest, by the sigmoid."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        y, valid = smp_valid(y, ignore_index)
        g = one_hot(y, x)
        balance = 1 if alpha is None else alpha * g + (1 - alpha) * (1 - g)
        losses = balance * binary_focal(x, g, gamma)
        if mode == "multiclass":
            valid = valid.unsqueeze(1).expand_as(x)
        return smp_mean(torch.stack([losses[:, c][valid[:, c]].mean() for c in range(x.shape[1])]), class_weights)

    return loss


def smp_cross_entropy(smooth_factor: float, ignore_index: int = -100) -> Loss:
    """The mean is over all voxels, ignored ones too."""
    options = {"label_smoothing": smooth_factor, "ignore_index": ignore_index, "reduction": "none"}
    return lambda x, y: F.cross_entropy(x, y, **options).mean()


def smp_binary_cross_entropy(ignore_index: int = -100, pos_weight: Tensor | None = None) -> Loss:
    """The mean is over all elements, ignored ones too."""
    options = {"reduction": "none", "pos_weight": pos_weight}
    return lambda x, m: (F.binary_cross_entropy_with_logits(x, m.double(), **options) * (m != ignore_index)).mean()


def sum_of_sorted(errors: Tensor, g: Tensor) -> Tensor:
    """The errors, from the largest, times what each adds to the Jaccard loss of those before it."""
    order = errors.detach().sort(descending=True, stable=True).indices
    g = g[order].double()
    jaccard = 1 - (g.sum() - g.cumsum(0)) / (g.sum() + (1 - g).cumsum(0))
    return errors[order] @ torch.cat([jaccard[:1], jaccard.diff()])


def smp_lovasz(mode: str, per_image: bool = False, ignore_index: int | None = None) -> Loss:
    """Of the classes that are present, or of all masks together."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        y, valid = smp_valid(y, ignore_index)
        if mode == "multiclass":
            p = softmax(x).movedim(1, -1)[valid]
            g = torch.nn.functional.one_hot(y[valid], x.shape[1])
            present = g.any(0).nonzero().flatten().tolist()
            return torch.stack([sum_of_sorted((g - p).abs()[:, c], g[:, c]) for c in present]).mean()
        return sum_of_sorted(torch.relu(1 - x * (2 * y.double() - 1))[valid], y[valid])

    if per_image:
        return lambda x, y: torch.stack([loss(*each) for each in zip(x.split(1), y.split(1), strict=True)]).mean()
    return loss


def kornia_mean_over_present_classes(losses: Tensor, g: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean over the present classes of each sample, then over the batch."""
    share = (g.flatten(2).sum(2) > 0) * (1 if weight is None else weight)
    return ((losses * share).sum(1) / share.sum(1)).mean()


def kornia_dice(x: Tensor, y: Tensor, average="micro", eps=1e-8, weight=None, ignore_index=-100) -> Tensor:
    y, valid = smp_valid(y, ignore_index)
    g = one_hot(y, x) * valid.unsqueeze(1)
    tp, fp, fn = overlap(softmax(x), g, valid.unsqueeze(1).double(), over_batch=False)
    if average == "micro":
        tp, fp, fn = (sums.sum(1) for sums in (tp, fp, fn))
    losses = 1 - 2 * tp / (2 * tp + fp + fn + eps)
    return losses.mean() if average == "micro" else kornia_mean_over_present_classes(losses, g, weight)


def kornia_tversky(x: Tensor, y: Tensor, alpha: float, beta: float, eps: float = 1e-8) -> Tensor:
    g = one_hot(y, x)
    tp, fp, fn = overlap(softmax(x), g, 1.0, over_batch=False)
    return kornia_mean_over_present_classes(1 - tp / (tp + alpha * fp + beta * fn + eps), g)


def kornia_focal(x: Tensor, y: Tensor, alpha, gamma=2.0, reduction="none", ignore_index=-100) -> Tensor:
    """A map [N, C, *] that is 0 except at the label; the mean is over all its elements, ignored ones too."""
    y, valid = smp_valid(y, ignore_index)
    g = one_hot(y, x) * valid.unsqueeze(1)
    if alpha is not None:
        g = g * torch.tensor([1 - alpha] + [alpha] * (x.shape[1] - 1), dtype=g.dtype).view(-1, *[1] * (x.dim() - 2))
    losses = g * (1 - softmax(x)) ** gamma * -x.log_softmax(1)
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


def kornia_binary_focal(x: Tensor, m: Tensor, alpha=0.25, gamma=2.0, reduction="none", ignore_index=-100) -> Tensor:
    """The mean is over all elements, ignored ones too."""
    m, valid = smp_valid(m, ignore_index)
    balance = 1 if alpha is None else alpha * m + (1 - alpha) * (1 - m)
    losses = valid * balance * binary_focal(x, m.double(), gamma)
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


PACKAGES = {
    "PyTorch": {"torch": torch, "nn": nn, "F": F},
    "MONAI": {**vars(monai), "brats": ConvertToMultiChannelBasedOnBratsClasses(et_label=3)},
    "nnU-Net": {
        "softmax": softmax,
        "SoftDiceLoss": nnunet_dice,
        "MemoryEfficientSoftDiceLoss": nnunet_dice,
        "RobustCrossEntropyLoss": nnunet_cross_entropy,
        "TopKLoss": nnunet_topk,
        "DC_and_CE_loss": nnunet_dice_and(nnunet_cross_entropy),
        "DC_and_BCE_loss": nnunet_dice_and_binary_cross_entropy,
        "DC_and_topk_loss": nnunet_dice_and(nnunet_topk),
        "DeepSupervisionWrapper": nnunet_deep_supervision,
    },
    "SMP": {
        "DiceLoss": smp_dice,
        "JaccardLoss": smp_jaccard,
        "TverskyLoss": smp_tversky,
        "LovaszLoss": smp_lovasz,
        "FocalLoss": smp_focal,
        "SoftCrossEntropyLoss": smp_cross_entropy,
        "SoftBCEWithLogitsLoss": smp_binary_cross_entropy,
    },
    "kornia": {
        "dice_loss": kornia_dice,
        "tversky_loss": kornia_tversky,
        "focal_loss": kornia_focal,
        "binary_focal_loss_with_logits": kornia_binary_focal,
    },
}


# ---- the tables ------------------------------------------------------------------------------------------------------


@dataclass
class Line:
    package: str
    theirs: str
    ours: str
    remark: str

    def evaluate(self, data: dict) -> tuple[Tensor, Tensor]:
        """Our loss and theirs."""
        data = {**data, "cat": torch.cat, "tensor": torch.tensor}
        return eval(self.ours, {**vars(segloss), **data}), eval(self.theirs, {**PACKAGES[self.package], **data})


def lines_of_the_table(package: str) -> list[Line]:
    page = (PAGES / PAGE_OF[package]).read_text(encoding="utf-8")
    header, _, *rows = [row for row in page.splitlines() if row.startswith("|")]
    assert re.fullmatch(rf"\| {package} [\d.]+ \| segloss \| difference \|", header)
    cells = [[cell.strip() for cell in row.removeprefix("|").removesuffix("|").split("|")] for row in rows]
    return [Line(package, theirs.strip("`"), ours.strip("`"), remark) for theirs, ours, remark in cells]


LINES = [line for package in PAGE_OF for line in lines_of_the_table(package)]


def random_labels(generator: torch.Generator, num_classes: int = 4) -> Tensor:
    """[2, 1, 12, 8], every class in every sample; equal in blocks of 4 x 4, so that any subsampling gives the same."""
    blocks = torch.stack([torch.randperm(6, generator=generator) % num_classes for _ in range(2)]).reshape(2, 1, 3, 2)
    return blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)


def random_data(package: str, seed: int = 0) -> dict:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    labels = random_labels(generator)
    x = torch.randn(2, 4, 12, 8, generator=generator, dtype=torch.float64) * 2
    ignored = torch.rand(2, 1, 12, 8, generator=generator) < 0.2
    unlabelled = labels.masked_fill(ignored, 255)
    data = names_of_pytorch(x.requires_grad_(), labels, unlabelled) if package == "PyTorch" else {}
    return {
        "x": x.requires_grad_(),
        "y": as_wanted_by(package, labels),
        "u": as_wanted_by(package, unlabelled),
        "g": one_hot(labels, x),
        "m": (torch.rand(x.shape, generator=generator) < 0.4).to(torch.int64 if package == "kornia" else torch.float64),
        "ignored": ignored.long(),
        "w": torch.rand(4, generator=generator, dtype=torch.float64) + 0.2,
        "C": 4,
        "xs": [x, F.avg_pool2d(x, 2), F.avg_pool2d(x, 4)],
        "ys": [labels, labels[..., ::2, ::2], labels[..., ::4, ::4]],
        "p": torch.rand(x.shape, generator=generator, dtype=torch.float64).softmax(1),
        **data,
    }


def names_of_pytorch(x: Tensor, labels: Tensor, unlabelled: Tensor) -> dict:
    """Data for PyTorch's page alone: uint8 labels, integer one-hot, classes last, and more."""
    return {
        "y": labels.to(torch.uint8),
        "u": unlabelled.to(torch.uint8),
        "g": one_hot(labels, x).to(torch.uint8),
        "log_p": x.log_softmax(1),
        "z": x.flatten(2).movedim(1, -1),
        "t": labels.flatten(1),
        "M": segloss.confusion_matrix(x, unlabelled, ignore_index=255),
    }


def as_wanted_by(package: str, labels: Tensor) -> Tensor:
    """Labels [N, 1, *] for MONAI, the same in float32 for nnU-Net, int64 [N, *] for SMP and kornia."""
    return {"MONAI": labels, "nnU-Net": labels.float()}.get(package, labels.squeeze(1))


def assert_same(line: Line, data: dict) -> None:
    ours, theirs = line.evaluate(data)
    # MONAI casts to float32 in its focal losses, the weights of generalized Dice, deep supervision and distance maps.
    cast = line.package == "MONAI" and re.match("(Dice)?Focal|Generalized|Deep|Boundary|Hausdorff", line.theirs)
    dtype = torch.float32 if cast or theirs.dtype != torch.float64 else torch.float64
    assert ours.shape == theirs.shape
    assert_close(ours, theirs, dtype)
    if not theirs.requires_grad:  # a score
        assert not ours.requires_grad
        return
    # Times the number of elements: otherwise the gradient of a mean would be below the tolerance.
    gradients = [
        torch.autograd.grad(loss * data["x"].numel(), data["x"], retain_graph=True)[0] for loss in (ours, theirs)
    ]
    assert_close(*gradients, dtype)
    assert gradients[1].abs().max() > 0.1


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.package} {line.theirs}")
def test_line_of_the_table(line):
    for seed in range(3):
        assert_same(line, random_data(line.package, seed))


# ---- nnU-Net's loss over its options ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("smooth", "ignored"), [(0.0, None), (1e-5, None), (1.0, None), (0.0, 0.3), (1e-5, 0.3), (1e-5, 1.0), (1.0, 1.0)]
)
@pytest.mark.parametrize("sizes", [(6, 5), (4, 3, 5)])
def test_nnunet_dice_and_cross_entropy(batch, background, smooth, ignored, sizes):
    """`ignored` is the share of ignored voxels. If all are ignored, a loss without smoothing is 0 / 0."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    x = torch.randn(2, 3, *sizes, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randint(3, (2, 1, *sizes), generator=generator).float()
    weight = torch.rand(3, generator=generator, dtype=torch.float64)
    ignore, ce_options = {}, {"weight": weight}
    if ignored is not None:
        y = y.masked_fill(torch.rand(y.shape, generator=generator) < ignored, 9)
        ignore, ce_options = {"ignore_index": 9}, {}
    dice_options = {"batch_dice": batch, "do_bg": background, "smooth": smooth, "ddp": False}
    theirs = nnunet_dice_and(nnunet_cross_entropy)(
        dice_options, ce_options, weight_ce=0.5, weight_dice=2, ignore_label=ignore.get("ignore_index", -100)
    )(x, y)
    options = {"batch": batch, "include_background": background, "smooth_nr": smooth, "smooth_dr": smooth, **ignore}
    if ignored is None:
        ours = 2 * segloss.dice_loss(x, y, **options) + 0.5 * segloss.cross_entropy(x, y, weight) - 2
    else:
        ours = segloss.dice_ce_loss(x, y, lambda_dice=2, lambda_ce=0.5, empty="zero", **options) - 2
    assert_close(ours, theirs)
    gradient, expected = (torch.autograd.grad(loss * y.numel(), x)[0] for loss in (ours, theirs))
    assert_close(gradient, expected)


# ---- the remarks -----------------------------------------------------------------------------------------------------

REMARKS: set[str] = set()


def shows(remark: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Marks a test as the one of a table's remark, which is repeated word for word."""
    REMARKS.add(remark)
    return lambda test: test


def lines_with(remark: str, package: str | None = None) -> list:
    """The lines that have the remark, as parameters of a test."""
    lines = [line for line in LINES if line.remark == remark and package in (None, line.package)]
    return [pytest.param(line, id=f"{line.package} {line.theirs}") for line in lines]


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed), dtype=torch.float64
    )


@shows("segloss raises an error if `g` is not one-hot.")
def test_one_hot_labels_are_checked():
    g = torch.tensor([[[1, 0], [1, 1]]], dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="one-hot"):
        segloss.cross_entropy(random_logits(1, 2, 2), g)


@shows("torch takes weights `[C]` for those of the last dimension.")
def test_torchs_weights_of_one_dimension_are_those_of_the_last_one():
    x, m = random_logits(2, 3, 4, 3), random_data("PyTorch")["m"][:, :3, :4, :3]
    w, bce = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), F.binary_cross_entropy_with_logits
    assert_close(bce(x, m, pos_weight=w), segloss.binary_cross_entropy_with_logits(x, m, pos_weight=w.view(1, 3)))
    assert_close(bce(x, m, w), segloss.binary_cross_entropy_with_logits(x, m, w, dim=-1))


@shows("With `to_onehot_y=True`, MONAI counts the masked-out voxels as background.")
def test_monai_masked_dice_counts_masked_voxels_as_background():
    data = random_data("MONAI")
    x, y, valid = data["x"], data["y"], 1 - data["ignored"]
    loss = monai.MaskedDiceLoss(softmax=True, to_onehot_y=True, reduction="none", batch=True)
    p, g = x.softmax(1) * valid, data["g"] * valid
    g[:, :1] += 1 - valid
    expected = 1 - (2 * (p * g).sum((0, 2, 3)) + 1e-5) / ((p + g).sum((0, 2, 3)) + 1e-5)
    assert_close(loss(x, y, valid).flatten(), expected, torch.float32)
    ours = segloss.dice_loss(x, y, voxel_weight=valid, reduction="none", batch=True)
    assert ours[0] < expected[0] - 0.01
    assert_close(ours[1:], expected[1:])


@shows("If none of the counted classes has a voxel, MONAI's loss is `1 - smooth_nr / smooth_dr`.")
def test_monai_generalized_dice_without_any_voxel_is_1_minus_nr_over_dr():
    x, y = random_logits(1, 3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.long)
    options = {"include_background": False, "smooth_nr": 0.1, "smooth_dr": 0.4}
    theirs = monai.GeneralizedDiceLoss(softmax=True, to_onehot_y=True, **options)(x, y)
    assert_close(theirs, torch.tensor(1 - 0.1 / 0.4), torch.float32)
    ours = segloss.generalized_dice_loss(x, y, **options)
    assert_close(ours, 1 - 0.1 / (x.softmax(1)[:, 1:].sum() + 0.4))


@shows("`include_background=False` drops class 0 from both terms in MONAI, from Dice only in segloss.")
def test_monai_dice_focal_drops_the_background_of_both_terms():
    data = random_data("MONAI")
    x, y, g = data["x"], data["y"], data["g"]
    options = {"include_background": False}
    dice = segloss.dice_loss(x, y, activation="sigmoid", **options)
    theirs = monai.DiceFocalLoss(sigmoid=True, to_onehot_y=True, **options)(x, y)
    assert_close(theirs, dice + binary_focal(x, g, 2.0)[:, 1:].mean(), torch.float32)
    ours = segloss.dice_focal_loss(x, y, activation="sigmoid", **options)
    assert_close(ours, dice + binary_focal(x, g, 2.0).mean())


@shows("With `use_ignore_label`, nnU-Net sums the cross entropy over the classes; `lambda_ce=C` reproduces that.")
def test_nnunet_ignored_voxels_make_the_binary_cross_entropy_c_times_as_heavy():
    data = random_data("nnU-Net")
    x, m, none_ignored = data["x"], data["m"], torch.zeros_like(data["ignored"])
    dice = nnunet_dice(torch.sigmoid, smooth=1e-5)(x, m)
    loss = nnunet_dice_and_binary_cross_entropy
    with_ignored = loss({}, {"smooth": 1e-5}, use_ignore_label=True)(x, torch.cat([m, none_ignored], 1))
    assert_close(with_ignored - dice, 4 * (loss({}, {"smooth": 1e-5})(x, m) - dice))
    options = {"activation": "sigmoid"}
    ours = segloss.dice_ce_loss(x, m, voxel_weight=1 - none_ignored, **options)
    assert_close(ours, segloss.dice_ce_loss(x, m, **options))


@shows("nnU-Net counts ignored voxels as losses of 0.")
def test_nnunet_topk_counts_ignored_voxels_as_zeros():
    x = random_logits(1, 3, 10, 10)
    y = torch.full((1, 1, 10, 10), 255.0)
    y[0, 0, 0] = torch.arange(10) % 3
    losses = F.cross_entropy(x[:, :, 0], y[:, 0, 0].long(), reduction="none").flatten()
    assert_close(nnunet_topk(k=20, ignore_index=255)(x, y), losses.sum() / 20)
    assert_close(segloss.topk_loss(x, y, k=20, ignore_index=255), losses.topk(2).values.mean())


def without_a_class(data: dict) -> dict:
    """The data without voxels of class 3; the masks lack class 0, too."""
    m = data["m"].clone()
    m[:, ::3] = 0
    return {
        **data,
        "m": m,
        "y": data["y"].masked_fill(data["y"] == 3, 2),
        "u": data["u"].masked_fill(data["u"] == 3, 2),
    }


@shows("The loss of a class without a voxel is 0 in SMP.")
@pytest.mark.parametrize("line", lines_with("The loss of a class without a voxel is 0 in SMP."))
def test_smp_counts_a_class_without_a_voxel_as_0(line):
    data = without_a_class(random_data(line.package))
    ours, theirs = line.evaluate(data)
    assert ours > theirs + 0.05


def test_smp_differs_by_the_term_of_the_class_without_a_voxel():
    data = without_a_class(random_data("SMP"))
    options = {"batch": True, "smooth_nr": 0, "smooth_dr": 0, "reduction": "none"}
    terms = segloss.dice_loss(data["x"], data["y"], **options)
    assert_close(smp_dice("multiclass")(data["x"], data["y"]), terms[:3].sum() / 4)
    assert_close(terms[3], torch.ones_like(terms[3]))


@shows("kornia leaves a class without a voxel out of the sample's mean.")
@pytest.mark.parametrize("line", lines_with("kornia leaves a class without a voxel out of the sample's mean."))
def test_kornia_leaves_a_class_without_a_voxel_out_of_the_samples_mean(line):
    data = without_a_class(random_data(line.package))
    ours, theirs = line.evaluate({**data, "w": torch.ones(4, dtype=torch.float64)})
    assert_close(ours, (3 * theirs + 1) / 4)  # our mean includes the absent class's term, 1


@shows("SMP divides by the ignored voxels, too.")
@shows("kornia divides by the ignored voxels, too.")
def test_smp_and_kornia_divide_by_ignored_voxels_too():
    data = random_data("SMP")
    x, u, ignored = data["x"], data["u"], data["ignored"].bool()
    m = data["m"].long().masked_fill(ignored, 255)
    sigmoid, ignore = {"activation": "sigmoid"}, {"ignore_index": 255}
    for theirs, ours in [
        (smp_cross_entropy(0.1, **ignore)(x, u), segloss.cross_entropy(x, u, label_smoothing=0.1, **ignore)),
        (smp_binary_cross_entropy(**ignore)(x, m), segloss.focal_loss(x, m, gamma=0, **sigmoid, **ignore)),
        (kornia_focal(x, u, None, reduction="mean", **ignore), segloss.focal_loss(x, u, **ignore) / 4),
        (kornia_binary_focal(x, m, None, reduction="mean", **ignore), segloss.focal_loss(x, m, **sigmoid, **ignore)),
    ]:
        assert_close(theirs, ours * (~ignored).double().mean())


def test_every_remark_of_a_table_has_a_test():
    assert {line.remark for line in LINES} - {""} == REMARKS


def test_every_package_has_lines_in_a_table():
    assert {line.package for line in LINES} == PACKAGES.keys()
    with_tests_of_their_own = {"huggingface.md", "torchmetrics.md", "others.md"}
    assert {page.name for page in PAGES.glob("*.md")} == {*PAGE_OF.values(), *with_tests_of_their_own}
    assert len(LINES) == len({(line.package, line.theirs) for line in LINES}) >= 55
