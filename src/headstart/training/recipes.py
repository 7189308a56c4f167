"""How to train by gradient: `Recipe`, each value declared once, for the loop and for whoever sets one.

Every strategy brings a recipe of its own; what a user gives goes over it (`over`).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from headstart.options import Option

__all__ = ["HEAD", "Recipe"]

PANEL = "Training by gradient (each strategy has values of its own)"


class Recipe(BaseModel):
    """How to train; `model_fields_set` tells what was given.

    Attributes:
        epochs: passes over the training images.
        batch: images a step.
        lr: the highest learning rate, of the head and of the body's last stage.
        layer_decay: the learning rate of a stage is this times that of the one above (Clark et al.,
            ELECTRA, 2020; for vision Bao et al., BEiT, 2022); 1 for none.
        schedule: "cosine" to zero, "one-cycle" (Smith 2018: up over 30 % of the steps, then cosine) or
            "constant".
        warmup: share of the steps over which the rate rises from zero; without effect on one-cycle.
        optimizer: "adamw", "adam", "amsgrad" (Reddi et al. 2018) or "sgd" (momentum 0.9).
        weight_decay: not on biases, norms and other vectors.
        label_smoothing: in [0, 1) (Szegedy et al. 2016).
        mixup: alpha of the Beta distribution that images are mixed by, 0 for none (Zhang et al. 2018).
        cutmix: as mixup, with a rectangle of the other image (Yun et al. 2019); mixup on tokens.
        clip: largest norm of the gradient; 0 for none.
        ema: decay a step of the averaged weights that are evaluated and kept; 0 for none.
        wise_ft: average with the starting point, share chosen on validation (Wortsman et al. 2022).
        monitor: "loss" or "accuracy" on the validation images, for the best epoch and for stopping.
        min_delta: an improvement is more than this.
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
        Option("Take a step on this many images.", PANEL, unit="images"),
    ] = 32
    lr: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False),
        Option("Let the learning rate rise to this.", PANEL),
    ] = 1e-3
    layer_decay: Annotated[
        float,
        Field(gt=0, le=1),
        Option("Give each stage this times the learning rate of the stage above it.", PANEL),
    ] = 1.0
    schedule: Annotated[
        Literal["cosine", "one-cycle", "constant"],
        Option("Let the learning rate follow this curve: {choices}.", PANEL),
    ] = "cosine"
    warmup: Annotated[
        float,
        Field(ge=0, lt=1),
        Option("Let the learning rate rise from zero over this fraction of the steps.", PANEL),
    ] = 0.1
    optimizer: Annotated[
        Literal["adamw", "adam", "amsgrad", "sgd"],
        Option("Take the steps with {choices}.", PANEL),
    ] = "adamw"
    weight_decay: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Option("Let weights decay at this rate; biases and norms do not.", PANEL),
    ] = 0.0
    label_smoothing: Annotated[
        float,
        Field(ge=0, lt=1),
        Option("Spread this much of each label over all classes.", PANEL),
    ] = 0.0
    mixup: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Option("Mix images with this alpha of mixup; 0 mixes none.", PANEL),
    ] = 0.0
    cutmix: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Option("Exchange rectangles of images with this alpha of cutmix; 0 exchanges none.", PANEL),
    ] = 0.0
    clip: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Option("Shorten longer gradients to this norm; 0 shortens none.", PANEL),
    ] = 0.0
    ema: Annotated[
        float,
        Field(ge=0, lt=1),
        Option(
            "Save averaged weights, of which this share stays in each step; 0 averages none.", PANEL
        ),
    ] = 0.0
    wise_ft: Annotated[
        bool,
        Option("Average the trained weights with the first as validation says.", PANEL),
    ] = False
    monitor: Annotated[
        Literal["loss", "accuracy"],
        Option(
            "Call that epoch the best that has the best {choices} on the validation images.", PANEL
        ),
    ] = "loss"
    min_delta: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Option("Call an epoch better only where it is so by more than this.", PANEL),
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
        Option("Write a checkpoint after this long.", PANEL, unit="seconds"),
    ] = 60.0

    def over(self, own: "Recipe") -> "Recipe":
        """A strategy's own values with those given here in their place."""
        return own.model_copy(update={n: getattr(self, n) for n in self.model_fields_set})


# Of an MLP head on features. Its steps take microseconds, which a measurement cannot tell apart.
HEAD = Recipe(
    epochs=20,
    batch=128,
    lr=1e-3,
    optimizer="adam",
    warmup=0.0,
    schedule="constant",
    train_precision="fp32",
)
