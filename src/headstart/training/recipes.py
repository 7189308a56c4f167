"""The settings of training by gradient, each declared once.

Every strategy has a recipe of its own; a value that the user gives replaces the strategy's (`over`).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from headstart.options import Option

__all__ = ["AUGMENT", "HEAD", "Recipe"]

# The default of `augment`.
AUGMENT = "medium"

PANEL = "Training by gradient (each strategy has its own defaults)"


class Recipe(BaseModel):
    """How to train; `model_fields_set` has the names of the values that were given.

    Attributes:
        epochs: passes over the training images.
        batch: images a step.
        lr: the highest learning rate, of the head and of the body's last stage.
        layer_decay: the learning rate of a stage is this times that of the one above (Clark et al.,
            ELECTRA, 2020; for vision Bao et al., BEiT, 2022); 1 for none.
        schedule: "cosine" to zero, "one-cycle" (Smith 2018: up over 30 % of the steps, then cosine) or
            "constant".
        warmup: fraction of the steps over which the rate rises from zero; one-cycle does not use it.
        optimizer: "adamw", "adam", "amsgrad" (Reddi et al. 2018) or "sgd" (momentum 0.9).
        weight_decay: of matrices; biases, norms and other vectors do not decay.
        label_smoothing: in [0, 1) (Szegedy et al. 2016).
        mixup: alpha of the Beta distribution that images are mixed by, 0 for none (Zhang et al. 2018).
        cutmix: as mixup, with a rectangle of the other image (Yun et al. 2019); mixup on tokens.
        clip: largest norm of the gradient; 0 for none.
        ema: decay per step of the averaged weights, which are evaluated and kept; 0 for none.
        wise_ft: average with the starting point, by a fraction chosen on validation (Wortsman et al. 2022).
        monitor: "loss" or "accuracy" on the validation images, for the best epoch and for stopping; "last"
            keeps the last epoch, whatever they say.
        min_delta: a smaller gain is no improvement.
        patience: stop after this many epochs without one; 0 never stops early.
        train_precision: "fp32", "bf16", or "auto", found by a short measurement.
        checkpoint_s: seconds between checkpoints.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Annotated[
        int,
        Field(ge=1, le=100_000),
        Option("Pass over the training images this many times.", PANEL),
    ] = 10
    batch: Annotated[
        int,
        Field(ge=1, le=65_536),
        Option("Use this many images in a step.", PANEL, unit="images"),
    ] = 32
    lr: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False),
        Option("Set the highest learning rate, that of the head and the last stage.", PANEL),
    ] = 1e-3
    layer_decay: Annotated[
        float,
        Field(gt=0, le=1),
        Option("Multiply the learning rate by this from each stage to the stage below it.", PANEL),
    ] = 1.0
    schedule: Annotated[
        Literal["cosine", "one-cycle", "constant"],
        Option("Change the learning rate along this curve: {choices}.", PANEL),
    ] = "cosine"
    warmup: Annotated[
        float,
        Field(ge=0, lt=1),
        Option("Raise the learning rate from zero over this fraction of the steps.", PANEL),
    ] = 0.1
    optimizer: Annotated[
        Literal["adamw", "adam", "amsgrad", "sgd"],
        Option("Use this optimizer: {choices}.", PANEL),
    ] = "adamw"
    weight_decay: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Option("Decay weights at this rate, but not biases and norms.", PANEL),
    ] = 0.0
    label_smoothing: Annotated[
        float,
        Field(ge=0, lt=1),
        Option("Spread this fraction of each label over all classes.", PANEL),
    ] = 0.0
    mixup: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Option("Apply mixup with this alpha; 0 mixes no images.", PANEL),
    ] = 0.0
    cutmix: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Option("Apply cutmix with this alpha; 0 exchanges no rectangles.", PANEL),
    ] = 0.0
    clip: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Option("Clip the gradient's norm to this; 0 clips nothing.", PANEL),
    ] = 0.0
    ema: Annotated[
        float,
        Field(ge=0, lt=1),
        Option(
            "Average the weights over steps with this decay and keep the average; 0 averages none.",
            PANEL,
        ),
    ] = 0.0
    wise_ft: Annotated[
        bool,
        Option(
            "Average the trained weights with the starting ones where validation gains by it.",
            PANEL,
        ),
    ] = False
    monitor: Annotated[
        Literal["loss", "accuracy", "last"],
        Option(
            "Keep the best epoch by this figure on the validation images, {choices}; last keeps the last "
            "one.",
            PANEL,
        ),
    ] = "loss"
    min_delta: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Option("Count an epoch as better only if it gains more than this.", PANEL),
    ] = 0.0
    patience: Annotated[
        int,
        Field(ge=0),
        Option(
            "Stop after this many epochs without a better one; 0 never stops early.",
            PANEL,
            unit="epochs",
        ),
    ] = 0
    train_precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Option("Train in {choices}; auto measures whether bf16 is faster.", PANEL),
    ] = "auto"
    checkpoint_s: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Option("Write a checkpoint at this interval.", PANEL, unit="seconds"),
    ] = 60.0

    def over(self, own: "Recipe") -> "Recipe":
        """Give a strategy's own values, replaced by those that were given here."""
        return own.model_copy(update={n: getattr(self, n) for n in self.model_fields_set})


# The recipe of an MLP head on features. Its steps are too short to measure which precision is faster.
HEAD = Recipe(
    epochs=20,
    batch=128,
    lr=1e-3,
    optimizer="adam",
    warmup=0.0,
    schedule="constant",
    train_precision="fp32",
)
