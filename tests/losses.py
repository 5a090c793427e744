"""Every loss and metric of segloss, and the variants of the losses that most tests run.

A new one is entered here; test_losses.py compares this file with the public names, and the tests' own tables with it.
"""

import inspect
from functools import partial

import torch

import segloss

VOXEL_LOSSES = ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits", "focal_loss", "topk_loss")
REGION_LOSSES = ("dice_loss", "generalized_dice_loss", "tversky_loss")
COMPOUND_LOSSES = ("dice_ce_loss", "dice_focal_loss")
LOVASZ_LOSSES = ("lovasz_softmax_loss", "lovasz_hinge_loss")
DISTANCE_LOSSES = ("boundary_loss", "hausdorff_dt_loss")
INSTANCE_LOSSES = ("cc_dice_ce_loss", "blob_loss")
CLDICE_LOSSES = ("soft_cldice_loss", "dice_cldice_loss")
NAMES = (
    *VOXEL_LOSSES,
    *REGION_LOSSES,
    *COMPOUND_LOSSES,
    *LOVASZ_LOSSES,
    *DISTANCE_LOSSES,
    *INSTANCE_LOSSES,
    *CLDICE_LOSSES,
)
FUNCTIONS = {name: getattr(segloss, name) for name in NAMES}
MODULES = {
    segloss.CrossEntropyLoss: segloss.cross_entropy,
    segloss.NLLLoss: segloss.nll_loss,
    segloss.BCEWithLogitsLoss: segloss.binary_cross_entropy_with_logits,
    segloss.FocalLoss: segloss.focal_loss,
    segloss.TopKLoss: segloss.topk_loss,
    segloss.DiceLoss: segloss.dice_loss,
    segloss.GeneralizedDiceLoss: segloss.generalized_dice_loss,
    segloss.TverskyLoss: segloss.tversky_loss,
    segloss.DiceCELoss: segloss.dice_ce_loss,
    segloss.DiceFocalLoss: segloss.dice_focal_loss,
    segloss.LovaszSoftmaxLoss: segloss.lovasz_softmax_loss,
    segloss.LovaszHingeLoss: segloss.lovasz_hinge_loss,
    segloss.BoundaryLoss: segloss.boundary_loss,
    segloss.HausdorffDTLoss: segloss.hausdorff_dt_loss,
    segloss.CCDiceCELoss: segloss.cc_dice_ce_loss,
    segloss.BlobLoss: segloss.blob_loss,
    segloss.SoftClDiceLoss: segloss.soft_cldice_loss,
    segloss.DiceClDiceLoss: segloss.dice_cldice_loss,
}
MODULES_ALONE = (
    segloss.BinaryDiceLoss,
    segloss.MultiClassDiceLoss,
    segloss.DeepSupervisionLoss,
    segloss.SkeletonRecallLoss,
)
METRICS = {name: getattr(segloss, name) for name in ("accuracy", "confusion_matrix", "dice_score", "jaccard_index")}
SURFACE_METRICS = ("average_surface_distance", "hausdorff_distance", "surface_dice")
NEITHER = (
    *SURFACE_METRICS,
    "Components",
    "Lesion",
    "LesionScores",
    "SegmentationReport",
    "ComponentStats",
    "SoftStats",
    "component_stats",
    "nearest_component",
    "connected_components",
    "distance_transform",
    "get_isa",
    "lesion_scores",
    "predict",
    "skeleton_recall_loss",  # needs two or three axes, and class labels
    "skeletonize",
    "soft_stats",
    "synchronize",
    "total_weight",
)

# The keywords that say what labels mean, besides ignore_index.
OF_LABELS = {"label_map": None, "regions": None, "label_sets": None, "label_set_index": None}

# The keywords that take logits to the target's size.
OF_SIZE = {"upsample": None, "align_corners": False}

SIGMOID, BATCH = {"activation": "sigmoid"}, {"batch": True}
KNOWN = {"num_components": 2000}  # no call waits for the largest number

# With the options that change what is computed, for any number of classes. Each gives one number.
VARIANTS = {
    "cross_entropy": partial(segloss.cross_entropy),
    "smoothed cross_entropy": partial(segloss.cross_entropy, label_smoothing=0.1),
    "nll_loss": partial(segloss.nll_loss),
    "focal_loss": partial(segloss.focal_loss, gamma=1.5),
    "sigmoid focal_loss": partial(segloss.focal_loss, **SIGMOID),
    "binary cross entropy": partial(segloss.binary_cross_entropy_with_logits),
    "smoothed binary cross entropy": partial(segloss.binary_cross_entropy_with_logits, label_smoothing=0.1),
    "topk_loss": partial(segloss.topk_loss, k=70),
    "dice_loss": partial(segloss.dice_loss),
    "sigmoid dice_loss": partial(segloss.dice_loss, **SIGMOID),
    "squared dice_loss of the batch": partial(segloss.dice_loss, squared=True, **BATCH),
    "jaccard dice_loss": partial(segloss.dice_loss, jaccard=True),
    "generalized_dice_loss": partial(segloss.generalized_dice_loss),
    "sigmoid generalized_dice_loss": partial(segloss.generalized_dice_loss, w_type="simple", **SIGMOID),
    "generalized_dice_loss of the batch": partial(segloss.generalized_dice_loss, **BATCH),
    "tversky_loss": partial(segloss.tversky_loss, alpha=0.3, beta=0.7),
    "sigmoid tversky_loss of the batch": partial(segloss.tversky_loss, gamma=0.75, **SIGMOID, **BATCH),
    "dice_ce_loss": partial(segloss.dice_ce_loss, label_smoothing=0.1),
    "sigmoid dice_ce_loss": partial(segloss.dice_ce_loss, **SIGMOID),
    "dice_ce_loss of the batch": partial(segloss.dice_ce_loss, **BATCH),
    "dice_focal_loss": partial(segloss.dice_focal_loss),
    "sigmoid dice_focal_loss": partial(segloss.dice_focal_loss, **SIGMOID),
    "lovasz_softmax_loss": partial(segloss.lovasz_softmax_loss, classes="all"),
    "lovasz_softmax_loss of each sample": partial(segloss.lovasz_softmax_loss, per_sample=True),
    "lovasz_hinge_loss": partial(segloss.lovasz_hinge_loss),
    "boundary_loss": partial(segloss.boundary_loss),
    "sigmoid boundary_loss of the batch": partial(segloss.boundary_loss, **SIGMOID, **BATCH),
    "hausdorff_dt_loss": partial(segloss.hausdorff_dt_loss),
    "sigmoid hausdorff_dt_loss": partial(segloss.hausdorff_dt_loss, alpha=1.5, **SIGMOID),
    "cc_dice_ce_loss": partial(segloss.cc_dice_ce_loss, **KNOWN),
    "sigmoid cc_dice_ce_loss": partial(segloss.cc_dice_ce_loss, lambda_global=0.5, **SIGMOID, **KNOWN),
    "blob_loss": partial(segloss.blob_loss, **KNOWN),
    "sigmoid blob_loss": partial(segloss.blob_loss, alpha=0.5, **SIGMOID, **KNOWN),
    "soft_cldice_loss": partial(segloss.soft_cldice_loss),
    "sigmoid soft_cldice_loss of the batch": partial(segloss.soft_cldice_loss, **SIGMOID, **BATCH),
    "dice_cldice_loss": partial(segloss.dice_cldice_loss, per_class=False),
    "sigmoid dice_cldice_loss": partial(segloss.dice_cldice_loss, **SIGMOID),
}
OF_EACH_VOXEL = {
    "cross_entropy of each voxel": partial(segloss.cross_entropy, reduction="none"),
    "sigmoid focal_loss of each voxel": partial(segloss.focal_loss, reduction="none", **SIGMOID),
    "binary cross entropy of each voxel": partial(segloss.binary_cross_entropy_with_logits, reduction="none"),
}


def takes(loss, keyword):
    return keyword in inspect.signature(loss).parameters


def taken(loss, **options):
    """The options that a loss takes."""
    return {keyword: value for keyword, value in options.items() if takes(loss, keyword)}


def is_sigmoid(loss):
    """Whether it takes a mask for each class; of a variant."""
    of_masks = (segloss.binary_cross_entropy_with_logits, segloss.lovasz_hinge_loss)
    return loss.keywords.get("activation") == "sigmoid" or loss.func in of_masks


def is_of_distances(loss):
    """Whether it needs spatial axes, and masks of 0 and 1; of a variant."""
    return loss.func in [FUNCTIONS[name] for name in DISTANCE_LOSSES + INSTANCE_LOSSES]


def needs_axes(loss):
    """Whether it needs spatial axes, and has a map of each class; of a variant."""
    return is_of_distances(loss) or loss.func in [FUNCTIONS[name] for name in CLDICE_LOSSES]


def takes_probabilities(loss):
    """Whether a target of input's shape may be soft; of a variant."""
    of_hard = [FUNCTIONS[name] for name in LOVASZ_LOSSES + DISTANCE_LOSSES + INSTANCE_LOSSES]
    of_labels = (segloss.focal_loss, segloss.topk_loss, segloss.dice_focal_loss)
    return loss.func not in of_hard and (is_sigmoid(loss) or loss.func not in of_labels)


def value_and_gradient(loss, x, *arguments, **options):
    """The loss, and the gradient of its sum with respect to x, in the dtype and on the device of x."""
    x = x.detach().requires_grad_()
    value = loss(x, *arguments, **options)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]
