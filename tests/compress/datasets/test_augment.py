from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from compress.datasets.augment import Augment, Augmentation, Crop, Flip, RandomResizedCrop, Translate, shift


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(N: int = 64, H: int = 7, W: int = 9, channels: int = 3) -> Tensor:
    # No zeros, so that zero fill can be told from pixels.
    return torch.randint(1, 256, (N, H, W, channels), dtype=torch.uint8, generator=generator(7))


def augmented(batch: Tensor, seed: int, *specs: Augmentation) -> Tensor:
    augment = Augment(specs)
    return augment.apply(batch, augment.draw(len(batch), generator(seed)))


def moved_one_by_one(batch: Tensor, offsets: Tensor) -> Tensor:
    """The plain reference: pixel by pixel, image by image."""
    out = torch.zeros_like(batch)
    N, H, W, _ = batch.shape
    for n in range(N):
        down, right = offsets[n].tolist()
        for y in range(H):
            for x in range(W):
                if 0 <= y - down < H and 0 <= x - right < W:
                    out[n, y, x] = batch[n, y - down, x - right]
    return out


def offsets_of(batch: Tensor, out: Tensor, reach: int) -> Tensor:
    """Find the one offset of each image that explains it (N, 2)."""
    N, H, W, channels = batch.shape
    padded = torch.zeros(N, H + 2 * reach, W + 2 * reach, channels, dtype=torch.uint8)
    padded[:, reach : reach + H, reach : reach + W] = batch
    found = torch.full((N, 2), -99)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            moved = padded[:, reach - down : reach - down + H, reach - right : reach - right + W]
            found[(moved == out).flatten(1).all(1)] = torch.tensor([down, right])
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_shift_equals_the_plain_loop(channels: int) -> None:
    batch = images(32, channels=channels)
    offsets = torch.randint(-4, 5, (32, 2), generator=generator(1))
    out = shift(batch, offsets, 4)
    assert out.dtype == torch.uint8
    assert torch.equal(out, moved_one_by_one(batch, offsets))


def test_shift_takes_any_memory_layout() -> None:
    batch = images(8)
    offsets = torch.randint(-2, 3, (8, 2), generator=generator(1))
    strided = batch.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)  # (N, H, W, channels), stored channels first
    assert torch.equal(shift(strided, offsets, 2), shift(batch, offsets, 2))


@pytest.mark.parametrize("spec", [Crop(padding=2), Translate(pixels=2)])
def test_crop_and_translate_reach_every_offset_within_the_bound_and_no_other(spec: Crop | Translate) -> None:
    batch = images(400)
    offsets = offsets_of(batch, augmented(batch, 0, spec), 3)
    assert offsets.abs().max() == 2  # -99 would be an image that no offset explains
    assert len(torch.unique(offsets, dim=0)) == 25


def test_crop_is_padding_and_then_a_window() -> None:
    batch, padding = images(20), 3
    places = 2 * padding + 1
    choice = torch.randint(places**2, (20,), generator=generator(5))
    padded = torch.zeros(20, 7 + 2 * padding, 9 + 2 * padding, 3, dtype=torch.uint8)
    padded[:, padding:-padding, padding:-padding] = batch
    corners = [divmod(one, places) for one in choice.tolist()]
    expected = torch.stack([image[y : y + 7, x : x + 9] for image, (y, x) in zip(padded, corners, strict=True)])
    assert torch.equal(Crop(padding=padding).apply(batch, choice), expected)


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest() -> None:
    batch = images(4000, 2, 3, 1)
    batch[:, :, 0], batch[:, :, 2] = 1, 2  # no image equals its mirror
    out = augmented(batch, 0, Flip())
    mirrored = (out == batch.flip(2)).flatten(1).all(1)
    assert torch.equal(out[~mirrored], batch[~mirrored])
    # Five standard deviations of a fair coin thrown 4,000 times are 158.
    assert abs(int(mirrored.sum()) - 2000) < 158


@pytest.mark.parametrize("spec", [Crop(padding=2), Flip(), Translate(pixels=2)])
def test_the_generator_alone_decides(spec: Crop | Flip | Translate) -> None:
    batch = images()
    before = batch.clone()
    torch.manual_seed(1)
    first = augmented(batch, 3, spec)
    torch.manual_seed(2)
    assert torch.equal(augmented(batch, 3, spec), first)
    assert not torch.equal(augmented(batch, 4, spec), first)
    assert torch.equal(batch, before)


def test_every_combination_of_choices_is_one_choice_applied_in_order() -> None:
    batch = images(18)
    augment = Augment((Translate(pixels=1), Flip()))
    assert augment.choices == 18
    out = augment.apply(batch, torch.arange(18))
    for n in range(18):
        one = batch[n : n + 1]
        moved = Translate(pixels=1).apply(one, torch.tensor([n % 9]))
        assert torch.equal(out[n : n + 1], Flip().apply(moved, torch.tensor([n // 9])))


def test_choices_are_drawn_evenly() -> None:
    augment = Augment((Translate(pixels=1), Flip()))
    counts = torch.bincount(augment.draw(18_000, generator()), minlength=18)
    # Five standard deviations of a share of 1/18 of 18,000 are 154.
    assert len(counts) == 18
    assert (counts - 1000).abs().max() < 154


def test_no_augmentation_leaves_images_as_they_are() -> None:
    batch = images(5)
    assert torch.equal(augmented(batch, 0), batch)


def test_an_empty_batch_stays_empty() -> None:
    assert augmented(torch.zeros(0, 4, 4, 1, dtype=torch.uint8), 0, Crop(padding=1), Flip()).shape == (0, 4, 4, 1)


@pytest.mark.gpu
def test_a_cpu_generator_gives_the_same_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    batch = images()
    specs = (Crop(padding=2), Flip(), Translate(pixels=1))
    assert torch.equal(augmented(batch.cuda(), 1, *specs).cpu(), augmented(batch, 1, *specs))


# The part that is chosen while an image is decoded


def parts(spec: RandomResizedCrop, *, seed: int = 0, epoch: int = 0, width: int = 500, height: int = 375) -> np.ndarray:
    of_row = spec.in_epoch(seed=seed, epoch=epoch)
    return np.array([of_row(row)(width, height) for row in range(300)])


def test_parts_lie_in_the_image_and_within_their_bounds() -> None:
    boxes = parts(RandomResizedCrop())
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 500).all()
    assert (bottom <= 375).all()
    width, height = right - left, bottom - top
    area, ratio = width * height / (500 * 375), width / height
    assert 0.079 < area.min() < 0.12  # sides are whole pixels
    assert 0.8 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.35
    assert len(np.unique(left)) > 50
    assert len(np.unique(top)) > 50


def test_a_part_hangs_on_seed_epoch_and_row_alone() -> None:
    spec = RandomResizedCrop()
    np.testing.assert_array_equal(parts(spec), parts(spec))
    of_row = spec.in_epoch(seed=0, epoch=0)
    assert of_row(7)(500, 375) == tuple(parts(spec)[7])  # whatever was drawn before it
    for other in ({"seed": 1}, {"epoch": 1}, {"seed": 2**32}):
        assert (parts(spec) != parts(spec, **other)).any(axis=1).mean() > 0.99


def test_the_draws_of_a_row_are_frozen() -> None:
    # Another value would train other weights under the same key.
    assert RandomResizedCrop().in_epoch(seed=3, epoch=2)(11)(500, 375) == (134, 28, 458, 341)


@pytest.mark.parametrize(
    ("width", "height", "ratio", "box"),
    [
        (1000, 10, (1.0, 1.0), (495, 0, 505, 10)),  # no square of 8 % of the area is so low
        (10, 1000, (0.5, 2.0), (0, 490, 10, 510)),
        (1000, 10, (0.5, 2.0), (490, 0, 510, 10)),
    ],
)
def test_the_centred_part_is_shown_where_no_other_fits(
    width: int, height: int, ratio: tuple[float, float], box: tuple[int, ...]
) -> None:
    assert RandomResizedCrop(ratio=ratio).in_epoch(seed=0, epoch=0)(0)(width, height) == box


def test_all_of_a_square_is_one_of_the_parts() -> None:
    assert RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0)).in_epoch(seed=0, epoch=0)(0)(64, 64) == (0, 0, 64, 64)


@pytest.mark.parametrize("options", [{"scale": (1.0, 0.5)}, {"ratio": (2.0, 0.5)}])
def test_bounds_that_descend_should_fail(options: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ValidationError, match="expected the lower bound before the upper one"):
        RandomResizedCrop(**options)
