"""Keywords of other packages' losses: what to write here instead."""

import inspect
from collections.abc import Callable, Container
from functools import wraps
from typing import ParamSpec

_Arguments = ParamSpec("_Arguments")

_SMOOTH = "smooth_nr and smooth_dr, of numerator and denominator"
_TWO_TERMS = "pass its entries as keywords of this loss"

# For each keyword the one of segloss that takes its place, if any, and what to write.
_ADVICE = {
    # MONAI
    "to_onehot_y": (None, "drop it, labels are taken as they come"),
    "softmax": ("activation", "the default, see activation"),
    "use_softmax": ("activation", "the default, see activation"),
    "sigmoid": ("activation", "activation='sigmoid'"),
    "other_act": ("activation", "apply it to the input, and give activation=None"),
    "squared_pred": ("squared", "squared"),
    "weight_mode": ("weights", "weights, a number for each resolution"),
    # SMP
    "mode": ("activation", "activation, 'softmax' by default, 'sigmoid' where classes may overlap"),
    "from_logits": ("activation", "activation=None for probabilities"),
    "smooth": ("smooth_nr", _SMOOTH),
    "eps": ("smooth_nr", _SMOOTH),
    "classes": (None, "take the mean over these classes of reduction='none'"),
    "class_weights": ("weight", "weight"),
    "per_image": ("per_sample", "per_sample"),
    "smooth_factor": ("label_smoothing", "label_smoothing, for a sigmoid 2 * smooth_factor"),
    "log_loss": (None, "take -(1 - loss).log() of reduction='none'"),
    # nnU-Net
    "apply_nonlin": ("activation", "the default is a softmax, see activation"),
    "batch_dice": ("batch", "batch"),
    "do_bg": ("include_background", "include_background"),
    "ddp": ("process_group", "process_group"),
    "ignore_label": ("ignore_index", "ignore_index"),
    "use_ignore_label": (None, "ignore_index, or voxel_weight of the call"),
    "weight_ce": ("lambda_ce", "lambda_ce"),
    "weight_dice": ("lambda_dice", "lambda_dice"),
    "soft_dice_kwargs": ("lambda_dice", _TWO_TERMS),
    "ce_kwargs": ("lambda_ce", _TWO_TERMS),
    "bce_kwargs": ("lambda_ce", _TWO_TERMS),
    # MMSegmentation, kornia
    "use_sigmoid": ("activation", "activation='sigmoid'"),
    "class_weight": ("weight", "weight"),
    "loss_weight": (None, "multiply the loss by it"),
    "avg_non_ignore": (None, "drop it, the mean is over the voxels that count"),
    "average": (None, "drop it for 'macro'; 'micro' is GeneralizedDiceLoss(w_type='uniform')"),
}


def explains_keywords(init: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """The __init__ of a loss, whose error for a keyword of another package says what to give instead."""
    own = inspect.signature(init).parameters

    @wraps(init)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        unknown = [keyword for keyword in kwargs if keyword not in own]
        if not any(keyword in _ADVICE for keyword in unknown):
            return init(*args, **kwargs)
        name = init.__qualname__.partition(".")[0]
        raise TypeError(
            f"{name}: expected segloss's own keywords, got {', '.join(_advised(keyword, own) for keyword in unknown)}. "
            "segloss.monai, segloss.smp and segloss.nnunet have losses with the keywords of MONAI, SMP and nnU-Net"
        )

    return call


def _advised(keyword: str, own: Container[str]) -> str:
    """The keyword, and what to write instead if the loss has that."""
    replacement, advice = _ADVICE.get(keyword, (keyword, ""))
    return f"{keyword} ({advice})" if replacement is None or replacement in own else keyword
