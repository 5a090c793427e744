"""Keywords of other packages' losses: what to write here instead."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

_Arguments = ParamSpec("_Arguments")

_SOFTMAX = "the default, see activation"
_SMOOTH = "smooth_nr and smooth_dr, of numerator and denominator"
_TWO_TERMS = "pass its entries as keywords of this loss"
_ADVICE = {
    # MONAI
    "to_onehot_y": "drop it, labels are taken as they come",
    "softmax": _SOFTMAX,
    "use_softmax": _SOFTMAX,
    "sigmoid": "activation='sigmoid'",
    "other_act": "apply it to the input, and give activation=None",
    "squared_pred": "squared",
    "weight_mode": "weights, a number for each resolution",
    # SMP
    "mode": "activation, which is 'softmax' by default, 'sigmoid' where classes may overlap",
    "from_logits": "activation=None for probabilities",
    "smooth": _SMOOTH,
    "eps": _SMOOTH,
    "classes": "weight, 0 for the classes to leave out",
    "class_weights": "weight",
    "smooth_factor": "label_smoothing",
    "log_loss": "take -(1 - loss).log() of reduction='none'",
    # nnU-Net
    "apply_nonlin": _SOFTMAX,
    "batch_dice": "batch",
    "do_bg": "include_background",
    "ddp": "process_group",
    "ignore_label": "ignore_index",
    "use_ignore_label": "ignore_index, or voxel_weight of the call",
    "weight_ce": "lambda_ce",
    "weight_dice": "lambda_dice",
    "soft_dice_kwargs": _TWO_TERMS,
    "ce_kwargs": _TWO_TERMS,
    "bce_kwargs": _TWO_TERMS,
    # MMSegmentation, kornia
    "use_sigmoid": "activation='sigmoid'",
    "class_weight": "weight",
    "loss_weight": "multiply the loss by it",
    "avg_non_ignore": "drop it, the mean is over the voxels that count",
    "average": "drop it for 'macro'; 'micro' is GeneralizedDiceLoss(w_type='uniform')",
}


def explains_keywords(init: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """The __init__ of a loss, whose error for a keyword of another package says what to give instead."""

    @wraps(init)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        try:
            init(*args, **kwargs)
        except TypeError as error:
            foreign = [keyword for keyword in kwargs if keyword in _ADVICE]
            if not foreign or "unexpected keyword argument" not in str(error):
                raise
            advice = ", ".join(f"{keyword} ({_ADVICE[keyword]})" for keyword in foreign)
            name = init.__qualname__.partition(".")[0]
            raise TypeError(
                f"{name}: expected segloss's own keywords, got {advice}. Use these, or the losses of segloss.monai, "
                "segloss.smp and segloss.nnunet, which have the keywords of these packages"
            ) from None

    return call
