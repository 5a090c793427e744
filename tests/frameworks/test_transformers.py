"""segloss.transformers beside transformers itself: tiny models of random weights, and real runs of Trainer."""

import copy
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from example_scripts import load_example
from tolerances import RTOL, assert_close
from torch import nn

import segloss
import segloss.monai
from segloss.transformers import SemanticSegmentationLoss

transformers = pytest.importorskip("transformers", reason="needs transformers, to compare with its models and Trainer")
pytest.importorskip("accelerate", reason="needs accelerate, which Trainer runs on")

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/coming-from/huggingface.md").read_text(encoding="utf-8")
CLASSES, SIZE = 5, 64
VIT = {"image_size": SIZE, "patch_size": 16, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
BEIT = {**VIT, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "drop_path_rate": 0.0, "auxiliary_channels": 16}
CONFIGS = {
    "Segformer": {
        "depths": [1] * 4,
        "hidden_sizes": [8, 16, 24, 32],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
        "classifier_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
    },
    "Beit": BEIT,
    "Data2VecVision": BEIT,
    "DPT": {
        **VIT,
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 16,
    },
    "UperNet": {"hidden_size": 16, "auxiliary_channels": 8, "auxiliary_in_channels": 16},
    "MobileNetV2": {"image_size": SIZE, "depth_multiplier": 0.25},
    "MobileViT": {
        "image_size": SIZE,
        "hidden_sizes": [16] * 3,
        "neck_hidden_sizes": [8] * 6 + [16],
        "aspp_out_channels": 8,
    },
}
WITH_AUXILIARY_HEAD = ["Beit", "Data2VecVision", "DPT", "UperNet"]


def spread(model, channels):
    """Makes the standard deviation of logits 1: those of a new model hardly differ, and any loss of them is log(C)."""

    def rescale(classifier, args, logits):
        classifier.weight.data /= logits.std()

    classifiers = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == channels]
    hooks = [classifier.register_forward_hook(rescale) for classifier in classifiers]
    with torch.no_grad():
        model(batch()[0])
    for hook in hooks:
        hook.remove()
    return model


def model_of(name, **options):
    """A model of random weights, without dropout, whose batch normalisation is by fixed numbers."""
    torch.manual_seed(0)
    options = {**CONFIGS[name], "num_labels": CLASSES, "initializer_range": 0.1, **options}
    if name == "UperNet":
        stages = ["stage1", "stage2", "stage3", "stage4"]
        options["backbone_config"] = transformers.ConvNextConfig(
            depths=[1] * 4, hidden_sizes=[8, 8, 16, 16], out_features=stages
        )
    config = getattr(transformers, f"{name}Config")(**options)
    return spread(getattr(transformers, f"{name}ForSemanticSegmentation")(config).eval(), options["num_labels"])


def batch(size=2, unlabelled=255):
    """Images and labels; the more rows are unlabelled, the later the sample."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, SIZE, SIZE, generator=generator)
    labels = torch.randint(CLASSES, (size, SIZE, SIZE), generator=generator)
    for n in range(size):
        labels[n, : 4 + 16 * n] = unlabelled
    return images, labels


def gradient_of(model, loss):
    """The gradients of all parameters that have one, one after the other."""
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_close_as_a_whole(actual, expected):
    """Gradients, of which many are too small to be exact by themselves."""
    assert actual.shape == expected.shape
    assert (actual - expected).norm() < RTOL[torch.float32] * expected.norm()


# ---- values and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_value_and_gradient_are_those_of_the_models_own_loss(name):
    model, (images, labels) = model_of(name), batch()
    expected = model(images, labels=labels).loss
    expected_gradient = gradient_of(model, expected)
    loss = SemanticSegmentationLoss(model)(model(images), labels)
    assert_close(loss, expected)
    assert_close_as_a_whole(gradient_of(model, loss), expected_gradient)


@pytest.mark.parametrize("name", WITH_AUXILIARY_HEAD)
def test_a_model_without_its_auxiliary_head_has_one_term(name):
    model, (images, labels) = model_of(name, use_auxiliary_head=False), batch()
    outputs = model(images)
    expected = segloss.cross_entropy(outputs.logits, labels, ignore_index=255, upsample="bilinear")
    assert_close(SemanticSegmentationLoss(model)(outputs, labels), expected)


@pytest.mark.parametrize("name", ["Segformer", "UperNet"])  # they call it by different names
def test_what_the_config_ignores_is_ignored(name):
    option = "loss_ignore_index" if name == "UperNet" else "semantic_loss_ignore_index"
    model, (images, labels) = model_of(name, **{option: 7}), batch(unlabelled=7)
    assert_close(SemanticSegmentationLoss(model)(model(images), labels), model(images, labels=labels).loss)


@pytest.mark.parametrize("name", ["Segformer", "Beit"])
def test_minus_100_is_ignored_as_well(name):
    model, (images, labels) = model_of(name), batch()
    criterion = SemanticSegmentationLoss(model)
    expected = criterion(model(images), labels)
    labels[1, :10] = -100  # were 255
    assert_close(criterion(model(images), labels), expected)


def test_labels_need_no_int64_and_may_have_a_channel():
    model, (images, labels) = model_of("Segformer"), batch()
    loss = SemanticSegmentationLoss(model)(model(images), labels.unsqueeze(1).to(torch.uint8))
    assert_close(loss, model(images, labels=labels).loss)


def test_a_model_may_return_a_tuple():
    model, (images, labels) = model_of("DPT"), batch()
    loss = SemanticSegmentationLoss(model)(model(images, return_dict=False), labels)
    assert_close(loss, model(images, labels=labels).loss)


def test_transformers_divides_by_the_ignored_voxels_too_with_one_channel():
    model, (images, labels) = model_of("Segformer", num_labels=1), batch()
    labels = labels.eq(1).long().masked_fill(labels == 255, 255)
    of_transformers = model(images, labels=labels).loss
    loss = SemanticSegmentationLoss(model)(model(images), labels)
    assert of_transformers < 0.9 * loss
    assert_close(of_transformers, loss * (labels != 255).float().mean())


def test_minus_100_is_ignored_as_well_with_one_channel():
    model, (images, labels) = model_of("Segformer", num_labels=1), batch(unlabelled=-100)
    labels = labels.eq(1).long().masked_fill(labels == -100, -100)
    loss = SemanticSegmentationLoss(model)(model(images), labels)
    assert_close(loss, SemanticSegmentationLoss(model)(model(images), labels.masked_fill(labels == -100, 255)))


def test_without_a_labelled_voxel_the_loss_is_nan_and_the_gradient_0_as_in_transformers():
    model, (images, labels) = model_of("Segformer"), batch()
    labels.fill_(255)
    loss = SemanticSegmentationLoss(model)(model(images), labels)
    assert loss.isnan()
    assert model(images, labels=labels).loss.isnan()
    assert (gradient_of(model, loss) == 0).all()


# ---- another loss ----------------------------------------------------------------------------------------------------

LOSSES = {
    "module": segloss.DiceCELoss(ignore_index=(255, -100)),
    "function": partial(segloss.dice_ce_loss, ignore_index=(255, -100)),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_any_loss_of_segloss_takes_the_place_of_cross_entropy(kind):
    model, (images, labels) = model_of("Segformer"), batch()
    expected = segloss.dice_ce_loss(model(images).logits, labels, ignore_index=255, upsample="bilinear")
    labels[1, :10] = -100  # were 255
    assert_close(SemanticSegmentationLoss(model, LOSSES[kind])(model(images), labels), expected)
    assert "`segloss.DiceCELoss(ignore_index=(255, -100))`" in PAGE


def test_another_loss_has_an_auxiliary_term_too():
    model, (images, labels) = model_of("Beit", auxiliary_loss_weight=0.3), batch()
    kept = []
    model.auxiliary_head.register_forward_hook(lambda head, args, logits: kept.append(logits))
    outputs = model(images)
    options = {"ignore_index": 255, "upsample": "bilinear"}
    main, auxiliary = (segloss.dice_ce_loss(logits, labels, **options) for logits in (outputs.logits, *kept))
    loss = SemanticSegmentationLoss(model, LOSSES["module"])(model(images), labels)
    assert_close(loss, main + 0.3 * auxiliary)


def test_a_loss_keeps_its_own_upsample():
    model, (images, labels) = model_of("Segformer"), batch()
    nearest = segloss.CrossEntropyLoss(ignore_index=255, upsample="nearest")
    aligned = partial(segloss.cross_entropy, ignore_index=255, upsample="bilinear", align_corners=True)
    for loss in (nearest, aligned):
        expected = loss(model(images).logits, labels)
        assert_close(SemanticSegmentationLoss(model, loss)(model(images), labels), expected)


def test_class_weights_follow_the_logits_to_their_device():
    model = nn.Module()
    model.config = SimpleNamespace(num_labels=2)
    criterion = SemanticSegmentationLoss(model, segloss.CrossEntropyLoss(torch.tensor([1.0, 2.0])))
    logits = torch.randn(2, 2, 4, 4, device="meta")
    assert criterion({"logits": logits}, torch.zeros(2, 8, 8, dtype=torch.long, device="meta")).device.type == "meta"


# ---- Trainer ---------------------------------------------------------------------------------------------------------


class TwoGpus(transformers.TrainingArguments):
    """Trainer then wraps the model in DataParallel, which calls it as it is where there is no GPU."""

    n_gpu = property(lambda self: 2)


class KeepGradient(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **more):
        self.gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def trainer_of(model, samples, folder, loss=None, arguments=transformers.TrainingArguments, metrics=None, **options):
    images, labels = samples
    options = {"max_steps": 1, "per_device_train_batch_size": 4, "max_grad_norm": 0.0, **options}
    arguments = arguments(
        folder,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        average_tokens_across_devices=options.pop("average_tokens_across_devices", True),
        **options,
    )
    data = [{"pixel_values": x, "labels": y} for x, y in zip(images, labels, strict=True)]
    model.train = lambda mode=True: model  # no dropout, and fixed numbers for batch normalisation
    return transformers.Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, compute_loss_func=loss, compute_metrics=metrics
    )


def losses_of(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def one_step(folder, samples, loss_of=SemanticSegmentationLoss, **options):
    """The loss that Trainer logs and the gradient that its optimizer gets."""
    model, keep = model_of("Segformer"), KeepGradient()
    trainer = trainer_of(model, samples, folder, loss_of and loss_of(model), **options)
    trainer.add_callback(keep)
    (loss,) = losses_of(trainer)
    return torch.tensor(loss), keep.gradient


@pytest.mark.parametrize("name", ["Segformer", "Beit"])
def test_trainer_has_the_same_losses_with_it(name, tmp_path):
    options = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    before = losses_of(trainer_of(model_of(name), batch(4), tmp_path, **options))
    model = model_of(name)
    after = losses_of(trainer_of(model, batch(4), tmp_path, SemanticSegmentationLoss(model), **options))
    assert len(set(before)) == 4
    assert after == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize(("size", "steps"), [(2, 2), (1, 4), (3, 2)])
def test_accumulated_gradients_are_those_of_the_batch_where_unlabelled_voxels_are_minus_100(size, steps, tmp_path):
    whole = one_step(tmp_path, batch(4, unlabelled=-100))
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
    accumulated = one_step(tmp_path, batch(4, unlabelled=-100), **options)
    assert_close(accumulated[0], whole[0])
    assert_close_as_a_whole(accumulated[1], whole[1])


def test_batch_norm_normalizes_each_micro_batch_by_itself():
    """The page says so: accumulated losses are that of the whole batch, but for it."""
    model, (images, labels) = model_of("Segformer"), batch(4, unlabelled=-100)
    criterion, count = SemanticSegmentationLoss(model), labels.ne(-100).sum()

    def of_halves():
        halves = zip(images.split(2), labels.split(2), strict=True)
        return sum(criterion(model(x), y, num_items_in_batch=count) for x, y in halves)

    assert_close(of_halves(), criterion(model(images), labels))
    model.decode_head.batch_norm.train()
    assert abs(of_halves() - criterion(model(images), labels)) > 1e-3


def test_accumulated_losses_are_weighted_by_all_labels_where_unlabelled_voxels_are_255(tmp_path):
    images, labels = batch(4)
    for n in range(4):
        labels[n, SIZE - 3 * n :] = -100  # the others are counted, those of 255 too
    loss, _ = one_step(tmp_path, (images, labels), per_device_train_batch_size=1, gradient_accumulation_steps=4)
    model = model_of("Segformer")
    criterion = SemanticSegmentationLoss(model)
    each = torch.stack([criterion(model(x), y) for x, y in zip(images.split(1), labels.split(1), strict=True)])
    counts = (labels != -100).sum((1, 2))
    assert_close(loss, (each * counts).sum().detach() / counts.sum())


def test_trainer_adds_up_segformers_own_losses_undivided(tmp_path):
    """The page says so. It expects a model that takes any keyword to divide by num_items_in_batch."""
    labels = batch(4)[1].clamp(max=CLASSES - 1)
    whole = one_step(tmp_path, (batch(4)[0], labels), None)
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    own = one_step(tmp_path, (batch(4)[0], labels), None, **halves)
    of_segloss = one_step(tmp_path, (batch(4)[0], labels), **halves)
    assert_close_as_a_whole(own[1], 2 * whole[1])
    assert_close_as_a_whole(of_segloss[1], whole[1])


def test_a_step_without_a_label_has_neither_loss_nor_gradient():
    model, (images, labels) = model_of("Segformer"), batch()
    labels.fill_(-100)
    criterion = SemanticSegmentationLoss(model, segloss.DiceLoss(batch=True))
    loss = criterion(model(images), labels, num_items_in_batch=labels.ne(-100).sum())
    assert loss == 0
    assert (gradient_of(model, loss) == 0).all()


@pytest.mark.parametrize("average", [True, False])
def test_data_parallel_has_the_loss_of_the_batch(average, tmp_path):
    """With it Trainer multiplies the loss by the number of GPUs, or divides num_items_in_batch by it."""
    whole = one_step(tmp_path, batch(4))
    options = {"arguments": TwoGpus, "average_tokens_across_devices": average}
    loss, gradient = one_step(tmp_path, batch(4), per_device_train_batch_size=2, **options)
    assert_close(loss, whole[0])
    assert_close_as_a_whole(gradient, whole[1])


def test_the_loss_of_an_evaluation_is_that_of_the_models_own(tmp_path):
    losses = []
    for loss_of in (lambda model: None, SemanticSegmentationLoss):
        model = model_of("Beit")
        trainer = trainer_of(model, batch(4), tmp_path, loss_of(model), per_device_eval_batch_size=2)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:Grad strides do not match")  # of DistributedDataParallel, on speed
@pytest.mark.parametrize("name", WITH_AUXILIARY_HEAD)
def test_distributed_data_parallel_finds_the_parameters_of_the_auxiliary_head(name, process_group):
    """It looks for unused ones behind the outputs, as Trainer tells it to, and fails at the others' gradient."""
    model, (images, labels) = model_of(name), batch()
    criterion = SemanticSegmentationLoss(model)
    parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    for _ in range(2):
        loss = criterion(parallel(images), labels)
        assert gradient_of(model, loss).isfinite().all()


# ---- mean IoU --------------------------------------------------------------------------------------------------------


def block_of_the_page(beginning):
    (code,) = re.findall(rf"^```python\n({beginning}.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = {"segloss": segloss, "torch": torch}
    exec(code, names)
    return names


def test_trainer_computes_the_mean_iou_of_the_page(tmp_path):
    model, (images, labels) = model_of("Segformer"), batch(5)
    metrics = block_of_the_page("class MeanIoU")["MeanIoU"]()
    options = {"per_device_eval_batch_size": 2, "batch_eval_metrics": True}
    trainer = trainer_of(model, (images, labels), tmp_path, SemanticSegmentationLoss(model), metrics=metrics, **options)
    iou = segloss.jaccard_index(model(images).logits, labels, ignore_index=255, upsample="bilinear")
    for _ in range(2):  # each evaluation counts anew
        assert trainer.evaluate()["eval_mean_iou"] == pytest.approx(iou.nanmean().item())


# ---- errors, copies -------------------------------------------------------------------------------------------------


def test_a_wrapped_model_raises_an_error():
    model = nn.DataParallel(model_of("Segformer"))
    with pytest.raises(TypeError, match="expected a model of transformers, with a config, got DataParallel"):
        SemanticSegmentationLoss(model)


def test_a_batch_without_labels_raises_an_error():
    model, (images, _) = model_of("Segformer"), batch()
    with pytest.raises(ValueError, match="expected labels, got None"):
        SemanticSegmentationLoss(model)(model(images), None)


@pytest.mark.parametrize("outputs", [{"class_queries_logits": None, "masks_queries_logits": None}, [], 1])
def test_outputs_of_other_models_raise_an_error(outputs):
    got = "class_queries_logits, masks_queries_logits" if isinstance(outputs, dict) else type(outputs).__name__
    with pytest.raises(TypeError, match=f"{got}. Models such as MaskFormer and Mask2Former have a loss of their own"):
        SemanticSegmentationLoss(model_of("Segformer"))(outputs, None)


def test_outputs_of_another_model_raise_an_error_where_an_auxiliary_head_has_a_loss():
    model, (images, labels) = model_of("Beit"), batch()
    criterion, outputs = SemanticSegmentationLoss(copy.deepcopy(model)), model(images)
    with pytest.raises(RuntimeError, match="expected outputs of the model that it was made from"):
        criterion(outputs, labels)


def test_auxiliary_logits_are_used_once():
    model, (images, labels) = model_of("Beit"), batch()
    criterion, outputs = SemanticSegmentationLoss(model), model(images)
    criterion(outputs, labels)
    with pytest.raises(RuntimeError, match="for a second time"):
        criterion(outputs, labels)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), segloss.monai.DiceLoss()], ids=["torch", "segloss.monai"])
def test_a_loss_that_cannot_upsample_raises_an_error(loss):
    message = "SemanticSegmentationLoss: expected a loss of segloss with upsample, got "
    with pytest.raises(TypeError, match=f"{message}{type(loss).__module__}.{type(loss).__name__}. Use a loss of seg"):
        SemanticSegmentationLoss(model_of("Segformer"), loss)


def test_a_model_can_be_copied_between_its_forward_pass_and_the_loss():
    model, (images, labels) = model_of("Beit"), batch()
    criterion, outputs = SemanticSegmentationLoss(model), model(images)
    copy.deepcopy(model)(images)
    assert_close(criterion(outputs, labels), model(images, labels=labels).loss)


# ---- the example and the page ----------------------------------------------------------------------------------------


def test_a_script_of_transformers_adds_one_argument(capsys, monkeypatch):
    before, after = load_example("hf_trainer", monkeypatch).main(["--steps", "3"])
    assert len(before) == 3
    assert after == pytest.approx(before, rel=1e-5)
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line[:17].strip() for line in lines] == ["the model's loss", "segloss"]
    assert last == f"The losses differ by at most {max(abs(a - b) for a, b in zip(before, after, strict=True)):.1e}"


def test_the_page_has_the_lines_of_the_example():
    code = (ROOT / "examples/hf_trainer.py").read_text(encoding="utf-8")
    lines = re.findall(r"^    return (Trainer\(.*\))$", code, re.MULTILINE)
    assert len(lines) == 2
    assert all(f"\ntrainer = {line}\n" in PAGE for line in lines)
