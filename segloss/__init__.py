"""Segmentation losses and metrics for PyTorch that take integer labels of any dtype, with or without a channel.

>>> import segloss, torch
>>> logits = torch.randn(2, 4, 8, 8, 8, requires_grad=True)  # [N, C, D, H, W]
>>> labels = torch.randint(4, (2, 1, 8, 8, 8), dtype=torch.uint8)  # [N, 1, D, H, W], any integer dtype
>>> segloss.cross_entropy(logits, labels, ignore_index=255).backward()
"""

import importlib
from types import ModuleType

from segloss._extension import get_isa, synchronize  # isort: skip  first: it registers the operators
from segloss import _vmap  # noqa: F401  registers the batching rules
from segloss.boundary import boundary_loss, hausdorff_dt_loss
from segloss.cldice import dice_cldice_loss, soft_cldice_loss
from segloss.components import Components, connected_components
from segloss.distance import distance_transform
from segloss.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    focal_loss,
    nll_loss,
    topk_loss,
    total_weight,
)
from segloss.instance import ComponentStats, blob_loss, cc_dice_ce_loss, component_stats, nearest_component
from segloss.lesions import Lesion, LesionScores, lesion_scores
from segloss.losses import (
    BCEWithLogitsLoss,
    BinaryDiceLoss,
    BlobLoss,
    BoundaryLoss,
    CCDiceCELoss,
    CrossEntropyLoss,
    DeepSupervisionLoss,
    DiceCELoss,
    DiceClDiceLoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    GeneralizedDiceLoss,
    HausdorffDTLoss,
    LovaszHingeLoss,
    LovaszSoftmaxLoss,
    MultiClassDiceLoss,
    NLLLoss,
    SkeletonRecallLoss,
    SoftClDiceLoss,
    TopKLoss,
    TverskyLoss,
)
from segloss.lovasz import lovasz_hinge_loss, lovasz_softmax_loss
from segloss.metrics import accuracy, confusion_matrix, dice_score, jaccard_index
from segloss.prediction import predict
from segloss.region import (
    SoftStats,
    dice_ce_loss,
    dice_focal_loss,
    dice_loss,
    generalized_dice_loss,
    soft_stats,
    tversky_loss,
)
from segloss.report import SegmentationReport
from segloss.skeleton import skeleton_recall_loss, skeletonize
from segloss.surface import average_surface_distance, hausdorff_distance, surface_dice

__version__ = "0.1.0"

_WHEN_ASKED_FOR = ("evaluate", "monai", "nnunet", "smp", "torchmetrics", "transformers")


def __getattr__(name: str) -> ModuleType:
    """Imports a module that needs another package when it is asked for, so that ``import segloss`` does not."""
    if name in _WHEN_ASKED_FOR:
        return importlib.import_module(f"segloss.{name}")
    raise AttributeError(f"module 'segloss' has no attribute {name!r}")


__all__ = [
    "BCEWithLogitsLoss",
    "BinaryDiceLoss",
    "BlobLoss",
    "BoundaryLoss",
    "CCDiceCELoss",
    "ComponentStats",
    "Components",
    "CrossEntropyLoss",
    "DeepSupervisionLoss",
    "DiceCELoss",
    "DiceClDiceLoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "GeneralizedDiceLoss",
    "HausdorffDTLoss",
    "Lesion",
    "LesionScores",
    "LovaszHingeLoss",
    "LovaszSoftmaxLoss",
    "MultiClassDiceLoss",
    "NLLLoss",
    "SegmentationReport",
    "SkeletonRecallLoss",
    "SoftClDiceLoss",
    "SoftStats",
    "TopKLoss",
    "TverskyLoss",
    "accuracy",
    "average_surface_distance",
    "binary_cross_entropy_with_logits",
    "blob_loss",
    "boundary_loss",
    "cc_dice_ce_loss",
    "component_stats",
    "confusion_matrix",
    "connected_components",
    "cross_entropy",
    "dice_ce_loss",
    "dice_cldice_loss",
    "dice_focal_loss",
    "dice_loss",
    "dice_score",
    "distance_transform",
    "focal_loss",
    "generalized_dice_loss",
    "get_isa",
    "hausdorff_distance",
    "hausdorff_dt_loss",
    "jaccard_index",
    "lesion_scores",
    "lovasz_hinge_loss",
    "lovasz_softmax_loss",
    "nearest_component",
    "nll_loss",
    "predict",
    "skeleton_recall_loss",
    "skeletonize",
    "soft_cldice_loss",
    "soft_stats",
    "surface_dice",
    "synchronize",
    "topk_loss",
    "total_weight",
    "tversky_loss",
]
