"""What users write around torch's losses today, each recipe against the one call that replaces it."""

import copy

import pytest
import torch
from tolerances import assert_close
from torch import nn
from torch.nn import functional as F

import segloss

EXAMPLE_LOGITS = [[[[0.12, 0.36], [0.22, 0.66]], [[0.13, 0.34], [0.52, -0.96]]]]
EXAMPLE_LABELS = [[[1, 0], [0, 1]]]


def value_and_gradient(loss, logits, scale):
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf)
    value.backward(torch.full_like(value, scale))
    return value.detach(), leaf.grad


def assert_same(ours, recipe, logits):
    """Same value and gradient. The gradient is times the number of voxels: a mean's would be below the tolerance."""
    scale = logits.numel() / logits.shape[1]
    value, gradient = value_and_gradient(ours, logits, scale)
    expected_value, expected_gradient = value_and_gradient(recipe, logits, scale)
    assert_close(value, expected_value)
    assert_close(gradient, expected_gradient)
    assert gradient.abs().max() > 0.1


# ---- volumes: logits [4, 3, 64, 64, 64], labels [4, 1, 64, 64, 64] ---------------------------------------------------


@pytest.fixture(scope="module")
def volume():
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    logits = torch.randn(4, 3, 64, 64, 64, generator=generator)
    return logits, torch.randint(3, (4, 1, 64, 64, 64), generator=generator)


def test_volume_equals_permute_and_reshape_to_rows(volume):
    logits, labels = volume
    assert_same(
        lambda x: segloss.cross_entropy(x, labels),
        lambda x: F.cross_entropy(x.permute(0, 2, 3, 4, 1).reshape(-1, 3), labels.view(-1)),
        logits,
    )


def test_volume_equals_squeezed_labels(volume):
    logits, labels = volume
    assert_same(lambda x: segloss.cross_entropy(x, labels), lambda x: F.cross_entropy(x, labels.squeeze(1)), logits)


def test_volume_accuracy_equals_argmax_and_comparison(volume):
    logits, labels = volume
    assert_close(segloss.accuracy(logits, labels), (logits.argmax(1) == labels.squeeze(1)).float().mean())


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_volume_one_hot_equals_labels(volume, dtype):
    logits, labels = volume[0][:1], volume[1][0, 0]  # [1, 3, 64, 64, 64] and [64, 64, 64]
    one_hot = F.one_hot(labels, 3).permute(3, 0, 1, 2).unsqueeze(0).to(dtype)
    assert_same(lambda x: segloss.cross_entropy(x, one_hot), lambda x: F.cross_entropy(x, labels.unsqueeze(0)), logits)


# ---- the example of four pixels --------------------------------------------------------------------------------------


def test_four_pixels_give_1_0066():
    loss = segloss.cross_entropy(torch.tensor(EXAMPLE_LOGITS), torch.tensor(EXAMPLE_LABELS))
    assert round(loss.item(), 4) == 1.0066


def test_four_pixels_equal_softmax_log_and_nll_loss_in_turn():
    labels = torch.tensor(EXAMPLE_LABELS)
    assert_same(
        lambda x: segloss.cross_entropy(x, labels),
        lambda x: F.nll_loss(F.softmax(x, dim=1).log(), labels),
        torch.tensor(EXAMPLE_LOGITS),
    )


def test_nll_loss_of_log_softmax_equals_cross_entropy_on_four_pixels():
    labels = torch.tensor(EXAMPLE_LABELS)
    assert_same(
        lambda x: segloss.nll_loss(x.log_softmax(1), labels),
        lambda x: F.cross_entropy(x, labels),
        torch.tensor(EXAMPLE_LOGITS),
    )


# ---- text: logits [4, 28, 128], the classes last ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def text():
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    return torch.randn(4, 28, 128, generator=generator), torch.randint(128, (4, 28), generator=generator)


def test_text_equals_permuted_logits(text):
    logits, labels = text
    assert_same(
        lambda x: segloss.cross_entropy(x, labels, dim=-1),
        lambda x: F.cross_entropy(x.permute(0, 2, 1), labels),
        logits,
    )


def test_text_equals_view_as_rows(text):
    logits, labels = text
    assert_same(
        lambda x: segloss.cross_entropy(x, labels, dim=-1),
        lambda x: F.cross_entropy(x.view(-1, 128), labels.view(-1)),
        logits,
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_text_one_hot_equals_labels(text, dtype):
    logits, labels = text
    one_hot = F.one_hot(labels, 128).to(dtype)
    assert_same(
        lambda x: segloss.cross_entropy(x, one_hot, dim=-1),
        lambda x: F.cross_entropy(x.view(-1, 128), labels.view(-1)),
        logits,
    )


# ---- images: logits [4, 2, 28, 28], labels [4, 1, 28, 28] ------------------------------------------------------------


@pytest.fixture(scope="module")
def image():
    generator = torch.Generator(torch.get_default_device()).manual_seed(2)
    return torch.randn(4, 2, 28, 28, generator=generator), torch.randint(2, (4, 1, 28, 28), generator=generator)


def test_image_equals_pixels_flattened_behind_the_classes(image):
    logits, labels = image
    batch, classes = logits.shape[:2]
    assert_same(
        lambda x: segloss.cross_entropy(x, labels),
        lambda x: F.cross_entropy(x.view(batch, classes, -1), labels.squeeze().view(batch, -1)),
        logits,
    )


def test_image_equals_permute_and_reshape_to_rows(image):
    logits, labels = image
    assert_same(
        lambda x: segloss.cross_entropy(x, labels),
        lambda x: F.cross_entropy(x.permute(0, 2, 3, 1).reshape(-1, 2), labels.view(-1)),
        logits,
    )


# ---- training a SegNet of 34 classes, 255 unlabelled -----------------------------------------------------------------

NUM_CLASSES = 34
UNLABELLED = 255


def conv(channels_in, channels_out):
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU())


class SegNet(nn.Module):
    """Encoder and decoder of two levels; the decoder unpools to where the encoder's maxima were."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList([conv(3, 8), conv(8, 16)])
        self.decoder = nn.ModuleList([conv(16, 8), conv(8, 8)])
        self.classifier = nn.Conv2d(8, NUM_CLASSES, 1)

    def forward(self, x):
        places = []
        for level in self.encoder:
            x, indices = F.max_pool2d(level(x), 2, return_indices=True)
            places.append(indices)
        for level in self.decoder:
            x = level(F.max_unpool2d(x, places.pop(), 2))
        return self.classifier(x)


def street_batches(num_batches):
    """Images and uint8 labels as a loader gives them, a third of the pixels unlabelled."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(3)
    for _ in range(num_batches):
        images = torch.randn(2, 3, 16, 24, generator=generator)
        labels = torch.randint(NUM_CLASSES, (2, 16, 24), generator=generator, dtype=torch.uint8)
        yield images, labels.masked_fill(torch.rand(2, 16, 24, generator=generator) < 1 / 3, UNLABELLED)


def train(model, loss_of, accuracy_of, num_steps):
    """The losses and pixel accuracies, step by step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    history = []
    for images, labels in street_batches(num_steps):
        optimizer.zero_grad()
        logits = model(images)
        loss = loss_of(logits, labels)
        loss.backward()
        optimizer.step()
        history.append(torch.stack([loss.detach(), accuracy_of(logits.detach(), labels)]))
    return torch.stack(history)


def accuracy_recipe(logits, labels):
    valid = labels != UNLABELLED
    return (logits.argmax(1)[valid] == labels[valid]).float().mean()


def test_segnet_trains_to_the_same_losses_accuracies_and_weights():
    torch.manual_seed(4)
    start = SegNet()
    theirs, ours = copy.deepcopy(start), copy.deepcopy(start)
    torch_loss = nn.CrossEntropyLoss(ignore_index=UNLABELLED)
    segloss_loss = segloss.CrossEntropyLoss(ignore_index=UNLABELLED)

    expected = train(theirs, lambda x, y: torch_loss(x, y.long()), accuracy_recipe, 6)
    actual = train(ours, segloss_loss, lambda x, y: segloss.accuracy(x, y, ignore_index=UNLABELLED), 6)

    # Each step inherits the rounding of the one before; the tolerance of a single step, 1e-5, still holds after six.
    assert_close(actual, expected)
    for weight, expected_weight in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, expected_weight, rtol=1e-4, atol=1e-5)
    assert (ours.classifier.weight - start.classifier.weight).abs().max() > 1e-2


# ---- mistakes that the errors name -----------------------------------------------------------------------------------


def test_argmax_before_the_loss_is_named_in_the_error():
    logits = torch.randn(2, 3, 4, 4)
    with pytest.raises(TypeError, match=r"cross_entropy: .*logits \[N, C, \.\.\.\].*predicted labels"):
        segloss.cross_entropy(logits.argmax(1), torch.zeros(2, 4, 4, dtype=torch.long))


def test_argmax_of_rows_before_the_loss_is_named_in_the_error():
    logits = torch.randn(3, 5)
    with pytest.raises(TypeError, match=r"cross_entropy: .*logits \[N, C, \.\.\.\].*predicted labels"):
        segloss.cross_entropy(logits.argmax(1), torch.tensor([0, 1, 2]))


LOST_CLASSES = (
    r"Expected floating point type for target with class probabilities, got Long.*"
    r"no class dimension.*expected logits \[N, C.*argmax or max taken before the loss\?"
)


def test_max_of_rows_before_the_loss_is_named_in_the_error():
    values = torch.randn(3, 5).max(1).values
    with pytest.raises(RuntimeError, match=LOST_CLASSES):
        segloss.cross_entropy(values, torch.tensor([2, 0, 1]))


def test_float_predictions_are_never_read_as_one_hot():
    """[3] with labels [0, 1, 0] would be a valid one-hot of three classes."""
    predictions = torch.randn(3, 5).argmax(1).float().requires_grad_()
    with pytest.raises(RuntimeError, match=LOST_CLASSES):
        segloss.cross_entropy(predictions, torch.tensor([0, 1, 0]))


def test_max_of_an_image_before_the_loss_is_named_in_the_error():
    """[2, 4, 4] is read as four classes of four voxels, and labels of that shape are not one-hot."""
    values = torch.randn(2, 3, 4, 4).max(1).values
    with pytest.raises(RuntimeError, match="Expected floating point type for target with class probabilities"):
        segloss.cross_entropy(values, torch.full((2, 4, 4), 2))
