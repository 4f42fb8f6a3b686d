"""Objectives of a user's own: what they declare and return is checked, and each mistake told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trigflow.core.randomness import SampleRandom
from trigflow.objectives import VSD, Batch, LossOutput, Nets, Objective, new_objective
from trigflow.objectives.batch import check_objective, check_output, losses_of
from trigflow.system.config import Component
from trigflow.system.errors import Diverged, LostProcess, OwnMistake, UserError


class Own(Objective):
    is_consistency = False

    def __call__(self, nets: Nets, batch: Batch, nimg: int, random: SampleRandom) -> LossOutput:
        raise NotImplementedError


class Unreadable(Own):
    @property
    def trains(self) -> tuple[str, ...]:  # type: ignore[override]
        raise KeyError("nothing")


def declaring(attribute: str, value: object) -> Objective:
    objective: Objective = type("Declaring", (Own,), {attribute: value})()
    return objective


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("trains", ("net", "fake")),
        ("forwards_per_image", 3),
        ("target_halflife", 500),
        ("guidance_scale", 2),
        ("guidance_scale", (1, 2.5)),
        ("compile", True),
    ],
)
def test_what_may_be_declared(attribute: str, value: object) -> None:
    assert getattr(check_objective(declaring(attribute, value), "a:B"), attribute) == value


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("trains", "net", 'trains = "net": should be a tuple of distinct names'),
        ("trains", (), "trains = []: should be a tuple of distinct names"),
        ("trains", ["net"], "a tuple"),
        ("trains", ("net", "net"), "distinct"),
        ("trains", ("net", 1), "a tuple of distinct names"),
        ("trains", ("net", "teacher"), 'other than "target", "teacher"'),
        ("target_halflife", -1, "target_halflife = -1: should be greater than or equal to 0"),
        ("target_halflife", 1.5, "target_halflife = 1.5"),
        ("target_halflife", True, "target_halflife = true"),
        ("guidance_scale", "2", 'guidance_scale = "2": should be a number'),
        ("guidance_scale", [1, 2], "a range as a tuple"),
        ("guidance_scale", (2, 1), "low < high"),
        ("guidance_scale", (1, 2, 3), "low < high"),
        ("guidance_scale", float("nan"), "should be a number"),
        ("forwards_per_image", 0, "forwards_per_image = 0: should be greater than 0"),
        ("is_consistency", 1, "is_consistency = 1: should be a valid boolean"),
        ("needs_teacher", "yes", "should be a valid boolean"),
        ("couples_images", None, "should be a valid boolean"),
        ("compile", 0, "should be a valid boolean"),
    ],
)
def test_what_cannot_be_declared(attribute: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_objective(declaring(attribute, value), "a:B")
    assert str(caught.value).startswith(f"objective 'a:B': {attribute}") and message in str(caught.value)


def test_an_attribute_that_cannot_be_read() -> None:
    with pytest.raises(UserError, match="KeyError: 'nothing'"):
        new_objective(Component("test_own_objectives:Unreadable"))


LOSS = torch.ones((), requires_grad=True)
LOGS = {"t": torch.zeros(3), "loss": torch.zeros(3)}
BATCH = Batch(torch.zeros(3, 2))


def test_a_right_result_is_accepted() -> None:
    trains = ("net", "fake")
    check_output(LossOutput({"net": LOSS, "fake": LOSS}, LOGS | {"error": LOSS}), "a:B", trains, BATCH)


def test_only_what_is_due_needs_a_loss() -> None:
    trains, due = ("net", "fake"), replace(BATCH, due=frozenset({"fake"}))
    check_output(LossOutput({"fake": LOSS}, {"t": LOGS["t"]}), "a:B", trains, due)
    check_output(LossOutput({"net": LOSS, "fake": LOSS}, LOGS), "a:B", trains, due)
    with pytest.raises(UserError, match="returns losses of net: give one for each that it trains: net, fake"):
        check_output(LossOutput({"net": LOSS}, LOGS), "a:B", trains, due)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "returns a NoneType: return a trigflow.objectives.LossOutput"),
        (LossOutput(LOSS, LOGS), "returns losses that are a tensor () with a graph"),  # type: ignore[arg-type]
        (LossOutput({"net": LOSS}, None), "returns logs that are a NoneType"),  # type: ignore[arg-type]
        (LossOutput({}, LOGS), "returns losses of no network: give one for each that it trains: net"),
        (LossOutput({"net": LOSS, "b": LOSS}, LOGS), "returns losses of net, b: give one for each"),
        (LossOutput({"net": 1.0}, LOGS), "a float as the loss of 'net'"),  # type: ignore[dict-item]
        (LossOutput({"net": LOSS * torch.ones(3)}, LOGS), "a tensor (3,) with a graph as the loss of 'net'"),
        (LossOutput({"net": LOSS.detach()}, LOGS), "a tensor () without a graph as the loss of 'net'"),
        (
            LossOutput({"net": LOSS}, {"t": LOGS["t"]}),
            "logs nothing as 'loss': give one value for each image, (3,)",
        ),
        (LossOutput({"net": LOSS}, LOGS | {"t": torch.zeros(())}), "logs a tensor () without a graph as 't'"),
        (LossOutput({"net": LOSS}, LOGS | {"loss": 0.5}), "logs a float as 'loss'"),  # type: ignore[dict-item]
    ],
)
def test_a_wrong_result_is_told(output: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_output(output, "a:B", ("net",), BATCH)
    assert message in str(caught.value) and str(caught.value).startswith("objective 'a:B' ")


class Raising(Own):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, nets: Nets, batch: Batch, nimg: int, random: SampleRandom) -> LossOutput:
        raise self.error


def called(error: BaseException, name: str = "a:B") -> LossOutput:
    batch, random = Batch(torch.zeros(3, 2)), SampleRandom(0, torch.arange(3))
    return losses_of(Raising(error), name, {}, batch, 0, random, OwnMistake)


@pytest.mark.parametrize("error", [TypeError("no"), RuntimeError("no"), SystemExit("no")])
def test_errors_of_own_code_are_told(error: BaseException) -> None:
    with pytest.raises(OwnMistake, match=rf"^objective 'a:B' fails: {type(error).__name__}: no$"):
        called(error)
    with pytest.raises(type(error)):
        called(error, "scd")


@pytest.mark.parametrize(
    "error",
    [
        UserError("a"),
        Diverged("a"),
        KeyboardInterrupt(),
        MemoryError(),
        torch.OutOfMemoryError("a"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("Connection closed by peer"),
        LostProcess("a"),
    ],
)
def test_errors_of_other_kinds_are_not_changed(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        called(error)
    assert caught.value is error


def test_initial_weights_of_a_network_that_it_does_not_train() -> None:
    objective = VSD()
    check_objective(objective, "vsd")
    with pytest.raises(UserError, match="initial_weights of 'score': it trains net, fake only"):
        check_objective(type("Own", (VSD,), {"initial_weights": {"score": "teacher"}})(), "a:B")
