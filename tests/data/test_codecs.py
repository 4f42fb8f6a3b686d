"""Codecs: x_0 has the standard deviation sigma_data, and decoding undoes encoding."""

from __future__ import annotations

import pytest
import torch

from trigflow.data.codecs import (
    CODECS,
    Codec,
    IdentityCodec,
    ImageCodec,
    LatentCodec,
    VectorCodec,
    codec_from_json,
    codec_to_json,
    count_pixel_values,
    sample_shape,
)
from trigflow.system.errors import UserError


def images(channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (40, channels, 5, 5), dtype=torch.uint8)


def vectors() -> torch.Tensor:
    return torch.randn(200, 3) * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([5.0, 0.0, -5.0])


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_measured_codecs_give_sigma_data(sigma_data: float) -> None:
    for codec, stored in (
        (ImageCodec.measure(images(), sigma_data), images()),
        (VectorCodec.measure(vectors(), sigma_data), vectors()),
    ):
        assert codec.sigma_data == sigma_data
        centred = type(codec).measure(stored, sigma_data).encode(stored)
        assert centred.dtype == torch.float32
        assert centred.double().square().mean().sqrt().item() == pytest.approx(sigma_data, rel=1e-5)


def test_every_pixel_value_survives_the_round_trip() -> None:
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    codec = ImageCodec((100.3,), (61.7,))
    assert torch.equal(codec.decode(codec.encode(grey)), grey)


def test_channels_have_their_own_statistics() -> None:
    codec = ImageCodec((10.0, 20.0, 30.0), (1.0, 2.0, 4.0), sigma_data=1.0)
    x_0 = codec.encode(torch.full((2, 3, 4, 4), 40, dtype=torch.uint8))
    assert x_0[0, :, 0, 0].tolist() == [30.0, 10.0, 2.5]


def test_images_are_clipped_not_wrapped() -> None:
    codec = ImageCodec((128.0,), (64.0,))
    assert codec.decode(torch.tensor([[[-9.0, 9.0]]])).flatten().tolist() == [0, 255]


def test_vectors_keep_their_shape() -> None:
    """One standard deviation for all elements: a stretched cloud stays stretched."""
    x = vectors()
    codec = VectorCodec.measure(x)
    assert torch.allclose(codec.decode(codec.encode(x)), x, atol=1e-5)
    ratio = codec.encode(x).std(0) / x.std(0)
    assert torch.allclose(ratio, ratio[0].expand(3))


@pytest.mark.parametrize(
    "codec",
    [
        ImageCodec((3.0,), (2.0,)),
        VectorCodec((1.0, 2.0), (3.0,), sigma_data=1.0),
        IdentityCodec(0.7),
        LatentCodec((1.0, 2.0), (3.0, 0.5), "0" * 64, "owner/name", 8),
    ],
    ids=list(CODECS),
)
def test_json_round_trip(codec: Codec) -> None:
    assert codec_from_json(codec_to_json(codec)) == codec


def latent_codec() -> LatentCodec:
    """With the paper's constants for sd-vae-ft-mse."""
    return LatentCodec(
        (1.56, -0.695, 0.483, 0.729), (5.27, 5.91, 4.21, 4.31), "0" * 64, "stabilityai/sd-vae-ft-mse", 8
    )


@pytest.mark.parametrize(
    ("stored", "computed", "error"),
    [
        (torch.float64, torch.float64, 1e-15),
        (torch.float32, torch.float32, 5e-7),
        (torch.float16, torch.float32, 5e-7),
    ],
)
def test_latents_survive_the_round_trip(stored: torch.dtype, computed: torch.dtype, error: float) -> None:
    codec = latent_codec()
    mean, std = (
        torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (codec.mean, codec.std)
    )
    latents = (mean + std * torch.randn(64, 4, 8, 8, dtype=torch.float64)).to(stored)
    x_0 = codec.encode(latents)
    assert x_0.dtype == computed
    assert x_0.double().std((0, 2, 3)).sub(codec.sigma_data).abs().max() < 0.02
    decoded = codec.decode(x_0)
    assert decoded.dtype == computed
    assert (decoded.double() - latents.double()).abs().max() <= error * latents.double().abs().max()


def test_the_shape_of_a_sample_is_that_of_its_image() -> None:
    assert sample_shape(latent_codec(), (4, 64, 64)) == (3, 512, 512)
    assert sample_shape(IdentityCodec(), (4, 64, 64)) == (4, 64, 64)


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="did you mean 'image'"):
        codec_from_json({"name": "images"})
    with pytest.raises(UserError, match=r"codec\.std\.0 = 0"):
        codec_from_json({"name": "image", "mean": [1], "std": [0]})
    with pytest.raises(UserError, match=r"codec\.autoencoder"):
        codec_from_json({**codec_to_json(latent_codec()), "autoencoder": "../../etc"})
    with pytest.raises(UserError, match="does not vary"):
        ImageCodec.measure(torch.zeros(4, 1, 2, 2, dtype=torch.uint8))


def test_codecs_work_on_each_device(device: torch.device) -> None:
    stored = images().to(device)
    codec = ImageCodec.measure(images())
    assert torch.equal(codec.decode(codec.encode(stored)).cpu(), stored.cpu())


def test_counted_pixel_values_give_the_same_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trigflow.data.codecs._CHUNK", 200)  # in several parts
    monkeypatch.setattr("trigflow.data.codecs.MOST_FLOATS", 1)
    stored = images()
    assert sum(count_pixel_values(stored)) == stored.numel()
    counted = ImageCodec.measure(stored)
    assert counted.mean[0] == stored.double().mean().item()
    assert counted.std[0] == pytest.approx(stored.double().std(correction=0).item(), rel=1e-14)
