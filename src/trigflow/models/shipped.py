"""The models that come with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from trigflow.system.errors import UserError, did_you_mean

SHIPPED = {
    "digits": "8x8 digits in one or two steps: sCD student of digits-teacher (recipe digits-scd)",
    "digits-teacher": "8x8 digits: TrigFlow diffusion, 63 evaluations a sample (recipe digits-teacher)",
    "mnist": "28x28 digits in one or two steps: sCD student of mnist-teacher (recipe mnist-scd)",
    "mnist-teacher": "28x28 digits: TrigFlow diffusion, guided, 126 evaluations a sample (recipe mnist-teacher)",
}


def model_folder(name: str | Path) -> Path:
    """The folder of a shipped model, or of a run (write ./digits for a folder with the name of a shipped model).

    Raises:
        UserError: neither a shipped model nor a folder.
    """
    if str(name) in SHIPPED:
        return Path(str(resources.files("trigflow"))) / "models" / "pretrained" / str(name)
    if not Path(name).is_dir():
        hint = did_you_mean(str(name), SHIPPED)
        raise UserError(f"no model '{name}'{hint}: give the folder of a run, or one of {', '.join(SHIPPED)}")
    return Path(name)
