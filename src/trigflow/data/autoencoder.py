"""Autoencoders between images and latents: AutoencoderKL and AutoencoderDC of diffusers, the extra `latents`.

An autoencoder is a folder with two files, config.json and its weights as safetensors; `encode` lays a copy beside the
latents, and a training one beside the model, so that both can be decoded without asking anybody. Weights are read as
data, nothing in the files is executed, and their digest is checked. The hub is asked only for a name that the user
gives; diffusers is imported when an autoencoder is used.

Images go in as pixel / 127.5 - 1: these autoencoders were trained on [-1, 1]. (EDM2 gave them [0, 1]; arXiv 2410.11081,
appendix G, corrects it.)
"""

from __future__ import annotations

import filecmp
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trigflow.system.devices import true_float32
from trigflow.system.errors import UserError
from trigflow.system.files import clear_os_errors, make_folder, read_json, replacing, sha256_of

FILES = CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
KINDS = ("AutoencoderKL", "AutoencoderDC")
DEFAULT = "stabilityai/sd-vae-ft-mse"
FOLDER = "vae"  # within the folder of latents, and of a model
HUB = "hf:"
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(/\w[\w.-]*)?")
_PIXELS = 2**19  # of all images decoded in one pass: two of 512x512 take 2.3 GB
_INSTALL = "an autoencoder needs the library diffusers: pip install 'trigflow[latents]'"
_NOT_FOUND = "give a folder with config.json and safetensors, or owner/name on the hub"


# Files


def find(name: str | None) -> tuple[Path, str]:
    """The folder of an autoencoder and a name for it.

    Args:
        name: a folder (also one of a whole pipeline, with the autoencoder in vae/), or owner/name or
            owner/name/subfolder on the hub, which is downloaded into the cache of huggingface_hub and said on stderr if
            it is not there. None: DEFAULT, if it is in that cache.

    Raises:
        UserError: there is none by that name, its files are missing, or it cannot be downloaded.
    """
    path, on_hub = Path(name or DEFAULT), (name or DEFAULT).removeprefix(HUB)
    if path.is_dir():
        inner = path / FOLDER
        return (inner if not (path / CONFIG).is_file() and inner.is_dir() else path), str(path)
    if not _HUB_NAME.fullmatch(on_hub):
        raise UserError(f"there is no autoencoder '{name}': {_NOT_FOUND}")
    return _from_hub(on_hub, download=name is not None), on_hub


def _from_hub(name: str, download: bool) -> Path:
    """The folder in the cache of huggingface_hub."""
    try:
        return _in_cache(name, local_files_only=True)
    except UserError:
        raise
    except Exception:  # not in the cache: the library has several names for that
        if not download:
            raise UserError(
                f"the autoencoder {name} is not in the cache of huggingface_hub: --vae {name} downloads it, "
                "--vae FOLDER takes another"
            ) from None
    print(f"no folder and not in the cache: downloading the autoencoder {name} from the hub", file=sys.stderr)
    try:
        return _in_cache(name, local_files_only=False)
    except Exception as error:  # of the network, of the service, or of the library
        what = str(error).strip().split("\n")[0]
        raise UserError(
            f"cannot get the autoencoder {name} from the hub: {type(error).__name__}: {what}"
        ) from None


def _in_cache(name: str, local_files_only: bool) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(_INSTALL) from None
    owner, repository, *inner = name.split("/")
    for file in FILES:
        path = hf_hub_download(
            f"{owner}/{repository}",
            file,
            subfolder=inner[0] if inner else None,
            local_files_only=local_files_only,
        )
    return Path(path).parent


def check_files(folder: Path) -> None:
    """Raises a UserError unless both files of an autoencoder are there."""
    for file in FILES:
        if not (folder / file).is_file():
            raise UserError(f"{folder} holds no autoencoder (no {file}): {_NOT_FOUND}")


def weights_digest(folder: Path) -> str:
    """SHA-256 of the file of weights.

    Raises:
        UserError: there is no autoencoder in the folder, or it cannot be read.
    """
    check_files(folder)
    return sha256_of(folder / WEIGHTS)


def copy_autoencoder(source: Path, folder: Path) -> None:
    """Lays the two files of an autoencoder into a folder, each whole or not at all; equal ones that are there stay.

    Raises:
        UserError: there is none in `source`, no space, no permission.
    """
    check_files(source)
    make_folder(folder)
    for file in FILES:
        target = folder / file
        with clear_os_errors("write", target):
            if target.exists() and filecmp.cmp(source / file, target, shallow=False):
                continue
            with (source / file).open("rb") as content, replacing(target) as copy:
                shutil.copyfileobj(content, copy, 2**22)


# Networks


@dataclass(frozen=True)
class Autoencoder:
    """Both directions, in float32.

    Attributes:
        net: of diffusers, frozen, on the device where it computes.
        sha256: of its weights.
        latent_channels: C of a latent (C, h, w).
        image_channels: 3, or 1 for grey images.
        factor: pixels along the side of an image for one of its latent.
    """

    net: Any
    sha256: str
    latent_channels: int
    image_channels: int
    factor: int

    @torch.no_grad()
    @true_float32()
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of each latent's distribution; the latter None where latents are certain.

        Args:
            images: (B, image_channels, H, W) uint8, H and W multiples of the factor.

        Returns:
            Two of (B, C, H / factor, W / factor) float32, on the device of the network.
        """
        encoded = self.net.encode(images.to(self.net.device).float() / 127.5 - 1)
        if hasattr(encoded, "latent_dist"):
            return encoded.latent_dist.mean, encoded.latent_dist.std
        return encoded.latent, None

    @torch.no_grad()
    @true_float32()
    def images(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the autoencoder gives them -> (B, image_channels, H, W) uint8, some at a time.

        Raises:
            UserError: images that are not finite.
        """
        pixels = self.factor**2 * latents[0, 0].numel()
        parts = []
        for part in torch.split(latents, max(1, _PIXELS // pixels)):
            decoded = self.net.decode(part.to(self.net.device).float()).sample
            if not decoded.isfinite().all():  # as uint8 they would be black pictures
                raise UserError("the autoencoder makes images that are not finite: its weights are damaged")
            parts.append(((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
        return torch.cat(parts)


@lru_cache(maxsize=2)  # teacher and student share one
def load_autoencoder(folder: Path, device: torch.device) -> Autoencoder:
    """The autoencoder of a folder.

    Raises:
        UserError: diffusers is not installed; no autoencoder, one of another kind, or a damaged one.
    """
    sha256 = weights_digest(folder)
    config = read_json(folder / CONFIG)
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind not in KINDS:
        raise UserError(
            f"{folder} holds {kind or 'no autoencoder'}: give one of the kinds {', '.join(KINDS)}"
        )
    net = _network(folder, kind).to(device).eval().requires_grad_(False)
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels") or ()
    sizes = (net.config.latent_channels, net.config.in_channels, 2 ** (len(blocks) - 1) if blocks else 0)
    if sizes[1] not in (1, 3) or not sizes[2]:
        raise UserError(
            f"{folder}: its autoencoder is of images with {sizes[1]} channels: give one of 1 or 3"
        )
    return Autoencoder(net, sha256, *sizes)


def _network(folder: Path, kind: str) -> Any:
    """The network with the weights of the file, and no others."""
    try:
        import diffusers
    except ImportError:
        raise UserError(_INSTALL) from None
    try:
        with _quiet(diffusers.utils.logging):
            net, found = getattr(diffusers, kind).from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                torch_dtype=torch.float32,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
    except MemoryError:
        raise
    except Exception as error:  # diffusers, safetensors and torch each have their own
        if "allocate memory" in str(error):
            raise MemoryError from None
        what = " ".join(str(error).split())[:300]
        raise UserError(f"the autoencoder in {folder} is damaged: {type(error).__name__}: {what}") from None
    # diffusers would fill what is missing with random numbers.
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found.get(fault):
            raise UserError(
                f"the autoencoder in {folder} is damaged: {fault.replace('_', ' ')} {sorted(map(str, found[fault]))[0]}"
            )
    for name, tensor in net.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(
                f"the autoencoder in {folder} is damaged: '{name}' holds numbers that are not finite"
            )
    return net


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without what diffusers says on stderr: what matters of it becomes an error."""
    former = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(former)


@dataclass(frozen=True)
class Decoder:
    """An autoencoder that is loaded when the first latents are to be decoded.

    Attributes:
        folder: where it lies, or should.
        sha256: of its weights, as the latents' codec has it.
        source: where it came from, for the errors.
        device: where it computes.
    """

    folder: Path
    sha256: str
    source: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def on(self, device: torch.device) -> Decoder:
        """The same on another device."""
        return replace(self, device=device)

    def load(self) -> Autoencoder:
        """Once for all decoders of the same folder and device.

        Raises:
            UserError: it is not there, is another one, or cannot be loaded.
        """
        if not (self.folder / WEIGHTS).is_file():
            raise UserError(
                f"there is no autoencoder in {self.folder}: --vae NAME_OR_PATH names it (it was {self.source})"
            )
        autoencoder = load_autoencoder(self.folder, self.device)
        self._check(autoencoder.sha256)
        return autoencoder

    def check_digest(self) -> None:
        """Whether the weights are those that made the latents, without loading them.

        Raises:
            UserError: they are not.
        """
        self._check(weights_digest(self.folder))

    def _check(self, found: str) -> None:
        if found != self.sha256:
            raise UserError(
                f"the autoencoder in {self.folder} is damaged or another one: its weights have the SHA-256 "
                f"{found[:12]}..., those of {self.source} that made the latents {self.sha256[:12]}..."
            )

    def images(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the autoencoder gives them -> images (B, 1 or 3, H, W) uint8."""
        return self.load().images(latents)
