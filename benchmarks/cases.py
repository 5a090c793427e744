"""What is measured: shapes, losses, and for each loss of segloss the code that a user would write instead."""

import importlib.util
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import segloss

Call = Callable[[Tensor, Tensor], Tensor]
Pairs = dict[str, tuple[Call, Call]]  # for each peer, a call of segloss and one of the peer with the same result
Options = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """Logits and labels, or with ``masks`` a mask for each class; ``channels_last`` is channels_last_3d for volumes."""

    shape: tuple[int, ...]  # of the logits
    labels: torch.dtype
    dim: int = 1  # of the classes
    ignore_index: int = -100
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    masks: bool = False
    enlarged: int = 1  # how many times the logits' size, along each axis, the labels have
    smooth: bool = False  # whether labels and logits have regions of many voxels, as organs are
    lesions: int = 0  # small boxes that are the foreground, in a volume of 128^3; fewer in smaller ones
    num_labels: int | None = None  # of labels whose regions are the channels; None: as many as channels
    device: str = "cpu"

    @property
    def num_classes(self) -> int:
        return self.shape[self.dim]

    @property
    def is_plain(self) -> bool:
        return self.dtype == torch.float32 and not self.channels_last

    @property
    def label_size(self) -> tuple[int, ...]:
        return tuple(self.enlarged * n for n in (self.shape[2:] if self.dim == 1 else self.shape[1:-1]))

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def with_sizes(self, size: int) -> "Problem":
        """The same problem with every size but that of the classes limited to ``size``."""
        sizes = [min(size, n) for n in self.shape]
        sizes[self.dim] = self.num_classes
        return replace(self, shape=tuple(sizes))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Logits, and labels [N, 1, *] if there are spatial sizes, or masks of which a fifth is 1.

        They are filled in place, so that peak memory stays low.
        """
        torch.manual_seed(0)
        layout = torch.contiguous_format
        if self.channels_last:
            layout = torch.channels_last if len(self.shape) == 4 else torch.channels_last_3d
        logits = torch.empty(self.shape, dtype=self.dtype, device=self.device, memory_format=layout)
        if self.smooth:
            target = self.regions()
            logits.copy_(target + 0.3 * self.regions())
            return logits.requires_grad_(), target.argmax(1, keepdim=True).to(self.labels)
        logits.normal_().requires_grad_()
        if self.masks:
            masks = torch.empty(self.shape, dtype=torch.uint8, device=self.device).random_(5)
            return logits, masks.eq_(0).to(self.labels)
        spatial = self.label_size
        sizes = (self.shape[0], 1, *spatial) if self.dim == 1 and spatial else (self.shape[0], *spatial)
        if self.lesions:
            return logits, self.boxes().view(sizes).to(self.labels)
        labels = torch.empty(sizes, dtype=self.labels, device=self.device).random_(self.num_labels or self.num_classes)
        if self.ignore_index >= 0:
            labels.view(-1)[::16] = self.ignore_index
        return logits, labels

    def regions(self) -> Tensor:
        """Logits that change over 16 voxels; of volumes."""
        coarse = torch.randn(*self.shape[:2], *(n // 16 + 2 for n in self.label_size), device=self.device)
        return F.interpolate(coarse, self.label_size, mode="trilinear")

    def boxes(self) -> Tensor:
        """Masks of some boxes of one to six voxels along each axis, in each sample."""
        masks = torch.zeros(self.shape[0], *self.label_size, device=self.device)
        for mask in masks:
            for _ in range(max(1, self.lesions * mask.numel() // 128**3)):
                box = mask
                for d, size in enumerate(mask.shape):
                    length = int(torch.randint(1, min(size, 6) + 1, ()))
                    box = box.narrow(d, int(torch.randint(size - length + 1, ())), length)
                box.fill_(1)
        return masks


@dataclass(frozen=True)
class Case:
    loss: str  # a key of LOSSES
    problem: Problem
    compiled: bool = False  # whether the peers are also measured with torch.compile

    @property
    def name(self) -> str:
        return " ".join([self.loss, *self.columns().values()])

    def columns(self) -> dict[str, str]:
        device = self.problem.device
        return {
            "logits": str(list(self.problem.shape)),
            "labels": str(self.problem.labels).removeprefix("torch.")
            + (" masks" if self.problem.masks else "")
            + (f" {list(self.problem.label_size)}" if self.problem.enlarged > 1 else ""),
            "dtype": str(self.problem.dtype).removeprefix("torch."),
            "layout": "channels_last" if self.problem.channels_last else "contiguous",
            **({} if device == "cpu" else {"device": device}),
        }

    def calls(self) -> Pairs:
        pairs = LOSSES[self.loss](self.problem)
        if self.compiled:
            compilable = {name: pair for name, pair in pairs.items() if name in COMPILED}
            pairs |= {f"{name}, compiled": (ours, compiled(theirs)) for name, (ours, theirs) in compilable.items()}
        return pairs


def compiled(call: Call) -> Call:
    return torch.compile(call, dynamic=False)


# ---- the peers' code; packages that are not installed are left out ----


def package(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@cache
def smp_losses() -> ModuleType | None:
    """Loads only the losses of segmentation_models_pytorch: unlike its encoders, they do not need torchvision."""
    found = importlib.util.find_spec("segmentation_models_pytorch")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "losses"
    spec = importlib.util.spec_from_file_location("smp_losses", folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    module.__path__ = [str(folder)]
    spec.loader.exec_module(module)
    return module


def nnunet_dice_ce(logits: Tensor, labels: Tensor, ignore_index: int, smooth: float = 1e-5) -> Tensor:
    """nnU-Net's DC_and_CE_loss with the options of its trainer, written out from its formula.

    Cross entropy minus the soft Dice of the batch without background. It saves memory where nnU-Net does: the one-hot
    target is bool, and the products leave out the background.
    """
    axes = (0, *range(2, logits.dim()))
    indices = labels.long()
    mask = indices != ignore_index if ignore_index >= 0 else None
    classes = indices if mask is None else indices.where(mask, 0)
    with torch.no_grad():
        target = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, classes, True)[:, 1:]
        target_size = (target if mask is None else target * mask).sum(axes)
    p = logits.softmax(1)[:, 1:]
    overlap = (p * target if mask is None else p * target * mask).sum(axes)
    predicted_size = (p if mask is None else p * mask).sum(axes)
    dice = (2 * overlap + smooth) / (predicted_size + target_size + smooth).clamp_min(1e-8)
    return F.cross_entropy(logits, indices.squeeze(1), ignore_index=ignore_index) - dice.mean()


def nnunet_dice_bce(logits: Tensor, masks: Tensor, smooth: float = 1e-5) -> Tensor:
    """nnU-Net's DC_and_BCE_loss with the options of its trainer of regions, written out from its formula."""
    axes = (0, *range(2, logits.dim()))
    p = logits.sigmoid()
    overlap, predicted_size, target_size = (p * masks).sum(axes), p.sum(axes), masks.sum(axes)
    dice = (2 * overlap + smooth) / (predicted_size + target_size + smooth).clamp_min(1e-8)
    return F.binary_cross_entropy_with_logits(logits, masks.float()) - dice.mean()


def dice_formula(logits: Tensor, labels: Tensor, smooth: float = 1e-5) -> Tensor:
    """The mean of 1 - Dice of each sample and class."""
    p = logits.softmax(1)
    target = F.one_hot(labels.reshape(-1, *logits.shape[2:]), logits.shape[1]).movedim(-1, 1).to(p.dtype)
    axes = tuple(range(2, logits.dim()))
    overlap, sizes = p * target, p + target
    if axes:
        overlap, sizes = overlap.sum(axes), sizes.sum(axes)
    return (1 - (2 * overlap + smooth) / (sizes + smooth)).mean()


def torchvision_focal(logits: Tensor, masks: Tensor, gamma: float = 2.0) -> Tensor:
    """torchvision's sigmoid_focal_loss without alpha, written out from its formula."""
    target, p = masks.float(), logits.sigmoid()
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * (1 - (p * target + (1 - p) * (1 - target))) ** gamma).mean()


def nnunet_topk(logits: Tensor, labels: Tensor, ignore_index: int, k: float = 10) -> Tensor:
    """nnU-Net's TopKLoss, written out from its formula."""
    losses = F.cross_entropy(logits, labels.squeeze(1).long(), ignore_index=ignore_index, reduction="none").flatten()
    return losses.topk(int(losses.numel() * k / 100), sorted=False).values.mean()


# ---- the losses ----


def cross_entropy(problem: Problem) -> Pairs:
    ignored: Options = {"ignore_index": problem.ignore_index}

    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.cross_entropy(logits, labels, dim=problem.dim, **ignored)

    def of_volumes(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels.squeeze(1).long(), **ignored)

    def of_sequences(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.movedim(-1, 1), labels.long(), **ignored)

    if problem.dim != 1:
        return {"torch": (ours, of_sequences)}
    return {"torch": (ours, of_volumes if len(problem.shape) > 2 else F.cross_entropy)}


def dice_ce(problem: Problem) -> Pairs:
    ignored: Options = {"ignore_index": problem.ignore_index}

    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.dice_ce_loss(logits, labels, **ignored)

    def as_nnunet(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.dice_ce_loss(logits, labels, include_background=False, batch=True, **ignored) - 1

    def nnunet(logits: Tensor, labels: Tensor) -> Tensor:
        return nnunet_dice_ce(logits, labels, **ignored)

    pairs: Pairs = {}
    monai = package("monai.losses")
    if monai and problem.ignore_index < 0:  # MONAI's DiceCELoss cannot ignore voxels
        pairs["MONAI"] = (ours, monai.DiceCELoss(softmax=True, to_onehot_y=True))
    return pairs | {"nnU-Net": (as_nnunet, nnunet)}


def dice(problem: Problem) -> Pairs:
    ignored: Options = {"ignore_index": problem.ignore_index}

    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.dice_loss(logits, labels, batch=True, smooth_nr=0, smooth_dr=0, **ignored)

    if smp := smp_losses():
        loss = smp.DiceLoss("multiclass", **ignored)
        return {"SMP": (ours, lambda logits, labels: loss(logits, labels.long()))}
    return {}


def dice_of_samples(problem: Problem) -> Pairs:
    return {"torch": (segloss.dice_loss, dice_formula)}


def generalized_dice(problem: Problem) -> Pairs:
    ignored: Options = {"ignore_index": problem.ignore_index}

    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        options: Options = {"w_type": "uniform", "smooth_nr": 0, "smooth_dr": 1e-8}
        return segloss.generalized_dice_loss(logits, labels, **options, **ignored)

    if kornia := package("kornia.losses"):
        return {"kornia": (ours, lambda x, y: kornia.dice_loss(x, y.squeeze(1).long(), **ignored))}
    return {}


def focal(problem: Problem) -> Pairs:
    options: Options = {"ignore_index": problem.ignore_index, "reduction": "sum"}

    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.focal_loss(logits, labels, **options)

    if kornia := package("kornia.losses"):  # its mean also counts ignored voxels, hence the sum
        return {"kornia": (ours, lambda x, y: kornia.focal_loss(x, y.squeeze(1).long(), alpha=None, **options))}
    return {}


def sigmoid_focal(problem: Problem) -> Pairs:
    ignored: Options = {"ignore_index": problem.ignore_index}

    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.focal_loss(logits, labels, activation="sigmoid", **ignored)

    def as_monai(logits: Tensor, labels: Tensor) -> Tensor:  # which divides by the voxels alone if some are ignored
        return ours(logits, labels) * (problem.num_classes if problem.ignore_index >= 0 else 1)

    pairs: Pairs = {}
    if monai := package("monai.losses"):
        of_labels: Options = {"to_onehot_y": True, **ignored}
        pairs["MONAI"] = (as_monai, monai.FocalLoss(**({} if problem.masks else of_labels)))
    if problem.masks:
        return pairs | {"torchvision": (ours, torchvision_focal)}
    if smp := smp_losses():
        loss = smp.FocalLoss("multiclass", **ignored)
        pairs["SMP"] = (ours, lambda logits, labels: loss(logits, labels.squeeze(1).long()))
    return pairs


def binary_cross_entropy(problem: Problem) -> Pairs:
    def torchs(logits: Tensor, masks: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype))

    return {"torch": (segloss.binary_cross_entropy_with_logits, torchs)}


def dice_bce(problem: Problem) -> Pairs:
    def ours(logits: Tensor, masks: Tensor) -> Tensor:
        return segloss.dice_ce_loss(logits, masks, activation="sigmoid", batch=True) - 1

    return {"nnU-Net": (ours, nnunet_dice_bce)}


# BraTS: tumour core, whole tumour, enhancing tumour; the order is that of MONAI's transform.
BRATS = [(1, 3), (1, 2, 3), (3,)]


def nnunet_regions(labels: Tensor) -> Tensor:
    """nnU-Net's ConvertSegmentationToRegionsTransform, written out: a bool mask for each region."""
    masks = torch.zeros((labels.shape[0], len(BRATS), *labels.shape[2:]), dtype=torch.bool)
    for channel, region in enumerate(BRATS):
        for label in region:
            masks[:, channel] |= labels[:, 0] == label
    return masks


def dice_ce_of_regions(problem: Problem) -> Pairs:
    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.dice_ce_loss(logits, labels, activation="sigmoid", regions=BRATS)

    def as_nnunet(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.dice_ce_loss(logits, labels, activation="sigmoid", regions=BRATS, batch=True) - 1

    pairs: Pairs = {}
    transforms, losses = package("monai.transforms"), package("monai.losses")
    if transforms and losses:
        convert = transforms.ConvertToMultiChannelBasedOnBratsClasses(et_label=3)
        dice = losses.DiceLoss(sigmoid=True)

        def monai(logits: Tensor, labels: Tensor) -> Tensor:  # DiceCELoss takes a softmax for the second term
            masks = torch.stack([convert(sample) for sample in labels]).float()
            return dice(logits, masks) + F.binary_cross_entropy_with_logits(logits, masks)

        pairs["MONAI"] = (ours, monai)
    return pairs | {"nnU-Net": (as_nnunet, lambda x, y: nnunet_dice_bce(x, nnunet_regions(y)))}


def with_label_map(loss: Callable[..., Tensor], problem: Problem) -> Pairs:
    """A label map that changes nothing, beside the same loss without one."""
    label_map = {c: c for c in range(problem.num_classes)} | {255: None}

    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits, labels, label_map=label_map, ignore_index=())

    def of_classes(logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits, labels, ignore_index=255)

    return {"without a map": (ours, of_classes)}


def cross_entropy_of_label_map(problem: Problem) -> Pairs:
    return with_label_map(segloss.cross_entropy, problem)


def dice_ce_of_label_map(problem: Problem) -> Pairs:
    return with_label_map(segloss.dice_ce_loss, problem)


def lovasz_formula(logits: Tensor, labels: Tensor) -> Tensor:
    """The Lovasz-Softmax loss of the classes that are present, by a sort and cumulative sums of each."""
    p, classes = logits.softmax(1), labels.reshape(-1)
    losses = []
    for c in range(logits.shape[1]):
        g = (classes == c).to(p.dtype)
        if g.any():
            errors, order = (g - p[:, c].reshape(-1)).abs().sort(descending=True)
            total, sorted_g = g.sum(), g[order]
            jaccard = 1 - (total - sorted_g.cumsum(0)) / (total + (1 - sorted_g).cumsum(0))
            losses.append(errors @ torch.cat([jaccard[:1], jaccard.diff()]))
    return torch.stack(losses).mean()


def lovasz_softmax(problem: Problem) -> Pairs:
    pairs: Pairs = {"torch": (segloss.lovasz_softmax_loss, lovasz_formula)}
    if smp := smp_losses():
        loss = smp.LovaszLoss("multiclass")
        pairs["SMP"] = (segloss.lovasz_softmax_loss, lambda logits, labels: loss(logits, labels.long()))
    return pairs


def lovasz_hinge(problem: Problem) -> Pairs:
    if smp := smp_losses():
        loss = smp.LovaszLoss("binary")
        return {"SMP": (segloss.lovasz_hinge_loss, lambda logits, masks: loss(logits, masks.long()))}
    return {}


def topk(problem: Problem) -> Pairs:
    ignored: Options = {"ignore_index": problem.ignore_index}

    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.topk_loss(logits, labels, **ignored)

    def nnunet(logits: Tensor, labels: Tensor) -> Tensor:
        return nnunet_topk(logits, labels, **ignored)

    return {"nnU-Net": (ours, nnunet)}


def boundary(problem: Problem) -> Pairs:
    if monai := package("monai.losses"):
        theirs = monai.BoundaryLoss(softmax=True, to_onehot_y=True)
        return {"MONAI": (segloss.boundary_loss, theirs)}
    return {}


def hausdorff_dt(problem: Problem) -> Pairs:
    if monai := package("monai.losses"):
        theirs = monai.HausdorffDTLoss(softmax=True, to_onehot_y=True, include_background=True)
        return {"MONAI": (segloss.hausdorff_dt_loss, theirs)}
    return {}


def lesion_by_lesion(
    logits: Tensor, labels: Tensor, components: Callable[[Tensor], Tensor], is_in: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """The mean over lesions of Dice and cross entropy in a mask for each, then over the samples, as authors have it."""
    samples = []
    for x, target in zip(logits, labels.squeeze(1).long(), strict=True):
        p, log_p, numbers = x.softmax(0)[1], x.log_softmax(0), components(target)
        losses, terms = -log_p.gather(0, target.unsqueeze(0)).squeeze(0), []
        for number in range(1, int(numbers.max()) + 1):
            mask = is_in(numbers, number)
            dice = 1 - 2 * (p * target * mask).sum() / (p * mask).sum().add((target * mask).sum())
            terms.append(dice + (losses * mask).sum() / mask.sum())
        samples.append(torch.stack(terms).mean())
    return torch.stack(samples).mean()


def cc_dice_ce(problem: Problem) -> Pairs:
    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.cc_dice_ce_loss(logits, labels, lambda_global=0)

    ndimage = package("scipy.ndimage")
    if ndimage is None:
        return {}

    def nearest(mask: Tensor) -> Tensor:
        found, _ = ndimage.label(mask.numpy(), ndimage.generate_binary_structure(mask.dim(), mask.dim()))
        places = ndimage.distance_transform_edt(found == 0, return_distances=False, return_indices=True)
        return torch.from_numpy(found[tuple(places)])

    def scipy(logits: Tensor, labels: Tensor) -> Tensor:
        return lesion_by_lesion(logits, labels, nearest, lambda numbers, number: numbers == number)

    return {"scipy, torch": (ours, scipy)}


def blobs(problem: Problem) -> Pairs:
    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.blob_loss(logits, labels, alpha=0)

    ndimage = package("scipy.ndimage")
    if ndimage is None:
        return {}

    def components(mask: Tensor) -> Tensor:
        found, _ = ndimage.label(mask.numpy(), ndimage.generate_binary_structure(mask.dim(), mask.dim()))
        return torch.from_numpy(found)

    def scipy(logits: Tensor, labels: Tensor) -> Tensor:
        return lesion_by_lesion(logits, labels, components, lambda numbers, b: (numbers == b) | (numbers == 0))

    return {"scipy, torch": (ours, scipy)}


def cldice(problem: Problem) -> Pairs:
    if monai := package("monai.losses"):
        theirs = monai.SoftclDiceLoss(softmax=True, to_onehot_y=True)
        return {"MONAI": (partial(segloss.soft_cldice_loss, per_class=False), theirs)}
    return {}


def confusion_matrix(problem: Problem) -> Pairs:
    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.confusion_matrix(logits, labels, ignore_index=problem.ignore_index)

    def argmax_and_bincount(logits: Tensor, labels: Tensor) -> Tensor:
        num_classes = problem.num_classes
        pairs = labels.squeeze(1).long() * num_classes + logits.argmax(1)
        if problem.ignore_index >= 0:
            pairs = pairs[labels.squeeze(1) != problem.ignore_index]
        return pairs.flatten().bincount(minlength=num_classes**2).view(num_classes, num_classes)

    return {"argmax, bincount": (ours, argmax_and_bincount)}


def distance_transform(problem: Problem) -> Pairs:
    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.distance_transform(labels, SPACING)

    ndimage = package("scipy.ndimage")
    if ndimage is None:
        return {}

    def scipy(logits: Tensor, labels: Tensor) -> Tensor:
        maps = [ndimage.distance_transform_edt(mask.numpy(), sampling=SPACING) for mask in labels.squeeze(1)]
        return torch.stack([torch.from_numpy(distances) for distances in maps]).unsqueeze(1).float()

    return {"scipy": (ours, scipy)}


SPACING = [1.5, 1.0, 1.0]


def components(problem: Problem, connectivity: int = 1) -> Pairs:
    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.connected_components(labels, connectivity=connectivity).labels

    ndimage = package("scipy.ndimage")
    if ndimage is None:
        return {}

    def scipy(logits: Tensor, labels: Tensor) -> Tensor:
        structure = ndimage.generate_binary_structure(labels.dim() - 2, connectivity)
        maps = [ndimage.label(mask.numpy(), structure)[0] for mask in labels.squeeze(1)]
        return torch.stack([torch.from_numpy(each) for each in maps]).unsqueeze(1)

    return {"scipy": (ours, scipy)}


def lesions(problem: Problem) -> Pairs:
    """Of two label maps; the peer goes through the lesions one by one."""

    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.lesion_scores(logits, labels).dice.view(-1)

    ndimage = package("scipy.ndimage")
    if ndimage is None:
        return {}

    def scipy(logits: Tensor, labels: Tensor) -> Tensor:
        structure = ndimage.generate_binary_structure(labels.dim() - 2, labels.dim() - 2)
        scores = []
        for mask, predicted in zip(labels.squeeze(1).numpy() == 1, logits.argmax(1).numpy() == 1, strict=True):
            (lesions, count), (parts, num_parts) = (ndimage.label(each, structure) for each in (mask, predicted))
            dice, matching = 0.0, set()
            for k in range(1, count + 1):
                lesion = lesions == k
                meeting = set(parts[lesion].tolist()) - {0}
                whole = np.isin(parts, list(meeting))
                dice += 2 * (whole & lesion).sum() / (whole.sum() + lesion.sum())
                matching |= meeting
            total = count + num_parts - len(matching)
            scores.append(dice / total if total else 1.0)
        return torch.tensor(scores, dtype=torch.float32)

    return {"scipy": (ours, scipy)}


def hausdorff(problem: Problem) -> Pairs:
    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.hausdorff_distance(logits, labels, percentile=95, spacing=SPACING).nan_to_num(0)

    metrics = package("monai.metrics")
    if metrics is None:
        return {}

    def monai(logits: Tensor, labels: Tensor) -> Tensor:
        pair = [
            F.one_hot(y.squeeze(1).long(), problem.num_classes).movedim(-1, 1)
            for y in (logits.argmax(1, keepdim=True), labels)
        ]
        options: Options = {"include_background": True, "percentile": 95, "spacing": SPACING}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of classes that are not there
            distance: Tensor = metrics.compute_hausdorff_distance(*pair, **options)
        return distance.nan_to_num(0)

    return {"MONAI": (ours, monai)}


# ---- logits of a smaller size than the labels ----


def usual(loss: Call, problem: Problem) -> Call:
    """The loss after the logits are interpolated to the labels' size."""

    def of_interpolated(logits: Tensor, labels: Tensor) -> Tensor:
        return loss(F.interpolate(logits, size=labels.shape[2:], mode=mode_of(problem)), labels)

    return of_interpolated


def mode_of(problem: Problem) -> str:
    return {1: "linear", 2: "bilinear", 3: "trilinear"}[len(problem.label_size)]


def with_upsample(loss: Callable[..., Tensor], theirs: Call, problem: Problem) -> Pairs:
    """Beside what is usual, with another loss of the same value, and with segloss's."""

    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits, labels, upsample=mode_of(problem))

    return {"interpolate, torch": (ours, usual(theirs, problem)), "interpolate, segloss": (ours, usual(loss, problem))}


def cross_entropy_of_small(problem: Problem) -> Pairs:
    return with_upsample(segloss.cross_entropy, lambda x, y: F.cross_entropy(x, y.squeeze(1).long()), problem)


def dice_ce_of_small(problem: Problem) -> Pairs:
    def theirs(logits: Tensor, labels: Tensor) -> Tensor:
        classes = labels.squeeze(1).long()
        return dice_formula(logits, classes) + F.cross_entropy(logits, classes)

    return with_upsample(segloss.dice_ce_loss, theirs, problem)


@cache
def tubes(sizes: tuple[int, ...]) -> Tensor:
    """A mask [1, 1, *] of tubes, where smooth fields, one less than axes, are all near 0."""
    torch.manual_seed(0)
    coarse = torch.randn(1, len(sizes) - 1, *(n // 16 + 2 for n in sizes))
    fields = F.interpolate(coarse, sizes, mode="bilinear" if len(sizes) == 2 else "trilinear")
    return (fields.square().sum(1, keepdim=True) < 0.05).to(torch.uint8)


def skeletons(problem: Problem) -> Pairs:
    """Of tubes of the problem's size."""

    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.skeletonize(tubes(problem.label_size)).view(torch.uint8)

    morphology = package("skimage.morphology")
    if morphology is None:
        return {}

    def scikit_image(logits: Tensor, labels: Tensor) -> Tensor:
        skeleton = morphology.skeletonize(tubes(problem.label_size)[0, 0].numpy())
        return torch.from_numpy(skeleton)[None, None].view(torch.uint8)

    return {"scikit-image": (ours, scikit_image)}


def confusion_matrix_of_small(problem: Problem) -> Pairs:
    ((_, theirs),) = confusion_matrix(problem).values()
    return with_upsample(segloss.confusion_matrix, theirs, problem)


def predict(problem: Problem) -> Pairs:
    def ours(logits: Tensor, labels: Tensor) -> Tensor:
        return segloss.predict(logits, labels.shape[2:], upsample=mode_of(problem))

    return {"interpolate, argmax": (ours, usual(lambda x, y: x.argmax(1).to(torch.uint8), problem))}


LOSSES: dict[str, Callable[[Problem], Pairs]] = {
    "cross_entropy": cross_entropy,
    "dice_ce_loss": dice_ce,
    "dice_loss": dice,
    "dice_loss of samples": dice_of_samples,
    "generalized_dice_loss": generalized_dice,
    "focal_loss": focal,
    "focal_loss of sigmoids": sigmoid_focal,
    "binary_cross_entropy_with_logits": binary_cross_entropy,
    "dice_ce_loss of sigmoids": dice_bce,
    "dice_ce_loss of regions": dice_ce_of_regions,
    "cross_entropy of a label map": cross_entropy_of_label_map,
    "dice_ce_loss of a label map": dice_ce_of_label_map,
    "topk_loss": topk,
    "lovasz_softmax_loss": lovasz_softmax,
    "lovasz_hinge_loss": lovasz_hinge,
    "boundary_loss": boundary,
    "hausdorff_dt_loss": hausdorff_dt,
    "cc_dice_ce_loss": cc_dice_ce,
    "blob_loss": blobs,
    "soft_cldice_loss": cldice,
    "confusion_matrix": confusion_matrix,
    "distance_transform": distance_transform,
    "connected_components": components,
    "connected_components of all neighbours": partial(components, connectivity=3),
    "lesion_scores": lesions,
    "hausdorff_distance": hausdorff,
    "skeletonize": skeletons,
    "cross_entropy of small logits": cross_entropy_of_small,
    "dice_ce_loss of small logits": dice_ce_of_small,
    "confusion_matrix of small logits": confusion_matrix_of_small,
    "predict": predict,
}
OF_MASKS = ("focal_loss of sigmoids", "binary_cross_entropy_with_logits", "dice_ce_loss of sigmoids")
OTHER_LOSSES = ("dice_loss", "generalized_dice_loss", "focal_loss", "focal_loss of sigmoids")
# Differences of Jaccard losses in float32 leave the peers' gradients few digits, of many voxels hardly one: they are
# compared on few voxels, with this tolerance.
OF_FEW_DIGITS = {"lovasz_softmax_loss": 2e-3, "lovasz_hinge_loss": 2e-3}
# Of two lesions at the same distance, scipy takes another one: few voxels have one lesion.
OF_FEW_DIGITS |= {"cc_dice_ce_loss": 1e-4}
COMPILED = ("torch", "nnU-Net")  # torch.compile cannot compile MONAI's losses as a whole

# ---- the cases ----

VOLUME = Problem((4, 3, 64, 64, 64), torch.int64)
PATCH = Problem((2, 4, 96, 96, 96), torch.uint8)
STREET = Problem((2, 19, 512, 1024), torch.uint8, ignore_index=255)
CROP = Problem((2, 19, 256, 512), torch.uint8, ignore_index=255)
BODY = Problem((1, 105, 64, 96, 96), torch.uint8)
REGIONS = Problem((2, 3, 64, 64, 64), torch.bool, masks=True)  # as those of BraTS
TUMOURS = Problem((2, 3, 128, 128, 128), torch.uint8, num_labels=4)
BINARY = Problem((2, 2, 96, 96, 96), torch.uint8)
VESSELS = Problem((2, 2, 512, 512), torch.uint8)
SCENES = Problem((2, 150, 256, 256), torch.uint8)
LABELLED_CROP = Problem((2, 19, 512, 512), torch.uint8)
FOREGROUND = Problem((2, 1, 128, 128, 128), torch.uint8, masks=True)
SEQUENCE = Problem((4, 28, 128), torch.int64, dim=-1)
IMAGES = Problem((32, 1000), torch.int64)
BATCH = Problem((256, 1000), torch.int64)
TEXT = Problem((256, 32000), torch.int64)
SMALL = Problem((4, 3, 4, 4), torch.int64)
ORGAN = Problem((1, 2, 256, 256, 256), torch.uint8, smooth=True)
SCATTERED = Problem((1, 2, 256, 256, 256), torch.int16)
SPOTS = Problem((1, 2, 192, 192, 192), torch.uint8, smooth=True)
ORGANS = Problem((1, 4, 192, 192, 192), torch.uint8, smooth=True)
LESIONS = Problem((1, 2, 128, 128, 128), torch.uint8, lesions=30)
TUBES = Problem((1, 2, 192, 192, 192), torch.uint8)
LINES = Problem((1, 2, 1024, 1024), torch.uint8)
COARSE = Problem((64, 3, 4, 4), torch.int64)
SAMPLES = Problem((2048, 1000), torch.int64)
QUARTER = Problem((1, 150, 128, 128), torch.uint8, enlarged=4)  # as SegFormer's
QUARTER_OF_STREET = Problem((2, 19, 256, 512), torch.uint8, enlarged=4)
THIRD_OF_BODY = Problem((1, 105, 64, 64, 64), torch.uint8, enlarged=3)
# Only for GPUs. No voxel is ignored, because MONAI's DiceCELoss cannot ignore voxels.
TUMOUR_PATCHES = Problem((2, 3, 128, 128, 128), torch.uint8)
PATCHES = Problem((2, 4, 128, 128, 128), torch.uint8)
STREETS = Problem((2, 19, 1024, 2048), torch.uint8)
WHOLE_BODY = Problem((1, 105, 128, 128, 128), torch.uint8)

IMAGE_LIKE = [VOLUME, PATCH, STREET, BODY]


def variants(problem: Problem) -> list[Problem]:
    """In float32 and bfloat16, contiguous and, if it applies, channels_last; the first is the problem itself."""
    layouts = [False, True] if len(problem.shape) > 3 else [False]
    dtypes = [torch.float32, torch.bfloat16]
    return [replace(problem, dtype=dtype, channels_last=last) for last in layouts for dtype in dtypes]


def cases(full: bool, device: str = "cpu") -> list[Case]:
    """The cases for a device. A GPU has larger ones, and in the full form also those of the CPU."""
    chosen = of_every_device(full) if full or device == "cpu" else []
    return on_device(chosen + (of_gpus() if device == "cuda" else []), device)


def on_device(cases: list[Case], device: str) -> list[Case]:
    return [replace(case, problem=replace(case.problem, device=device)) for case in cases]


def tiny(case: Case) -> Case:
    """The same, of a few voxels on the CPU, and without a compiler."""
    return replace(case, problem=replace(case.problem.with_sizes(8), device="cpu"), compiled=False)


def of_gpus() -> list[Case]:
    """The compiled ones come last: their compilation takes longer than all measurements."""
    problems = [variant for problem in (PATCHES, STREETS, WHOLE_BODY) for variant in variants(problem)]
    problems = [problem for problem in problems if not problem.channels_last]
    return [
        Case(loss, problem, loss == "cross_entropy")
        for loss in ("dice_ce_loss", "cross_entropy")
        for problem in problems
    ]


def of_every_device(full: bool) -> list[Case]:
    rows = [("cross_entropy", problem) for problem in [*IMAGE_LIKE, SEQUENCE, IMAGES, BATCH, TEXT]]
    rows += [("dice_ce_loss", problem) for problem in (IMAGE_LIKE if full else [PATCH, BODY])]
    plain = [Case("cross_entropy", SMALL), *(Case(loss, CROP) for loss in OTHER_LOSSES)]
    plain += [Case(loss, REGIONS) for loss in OF_MASKS]
    plain += [Case(loss, BINARY) for loss in ("cross_entropy", "dice_ce_loss")]
    plain += [Case("dice_ce_loss of regions", TUMOURS)]
    plain += [Case("cross_entropy of a label map", problem) for problem in (PATCH, STREET)]
    plain += [Case("dice_ce_loss of a label map", problem) for problem in (PATCH, STREET)]
    plain += [Case("dice_loss of samples", problem) for problem in (COARSE, SAMPLES)]
    plain += [Case("topk_loss", PATCH)]
    plain += [Case("lovasz_softmax_loss", problem) for problem in (PATCHES, LABELLED_CROP)]
    plain += [Case("lovasz_hinge_loss", FOREGROUND)]
    plain += [Case(loss, PATCH) for loss in ("topk_loss", "boundary_loss", "hausdorff_dt_loss")]
    plain += [Case(loss, LESIONS) for loss in ("cc_dice_ce_loss", "blob_loss")]
    plain += [Case("soft_cldice_loss", problem) for problem in (BINARY, VESSELS)]
    plain += [Case("confusion_matrix", problem) for problem in (STREET, BODY)]
    plain += [Case("distance_transform", ORGAN), Case("hausdorff_distance", ORGANS)]
    plain += [Case("skeletonize", problem) for problem in (TUBES, LINES)]
    plain += [
        Case(f"connected_components{neighbours}", problem)
        for neighbours in ("", " of all neighbours")
        for problem in (ORGAN, SCATTERED)
    ]
    plain += [Case("lesion_scores", SPOTS)]
    plain += [
        Case(f"{loss} of small logits", QUARTER) for loss in ("cross_entropy", "dice_ce_loss", "confusion_matrix")
    ]
    plain += [Case("cross_entropy of small logits", QUARTER_OF_STREET), Case("predict", THIRD_OF_BODY)]
    if not full:
        return [Case(*row, compiled=row in QUICKLY_COMPILED) for row in rows] + plain
    return [
        Case(loss, variant, compiled=not variant.channels_last)
        for loss, problem in rows
        for variant in variants(problem)
    ] + plain


QUICKLY_COMPILED = [("cross_entropy", VOLUME), ("cross_entropy", STREET), ("cross_entropy", TEXT)]
