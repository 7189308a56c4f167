"""All weights are trained from pixels, a new augmented view in every epoch: `fine-tune`."""

from headstart.training.recipes import Recipe
from headstart.training.task import FEATURES, GRADIENT, PRETRAINED, Strategy, Task, Trained

__all__ = ["FINE_TUNE"]

RECIPE = Recipe(
    epochs=10,
    batch=32,
    lr=2e-4,
    layer_decay=0.9,
    weight_decay=0.05,
    label_smoothing=0.1,
    clip=1.0,
    monitor="accuracy",
)


def _run(task: Task) -> Trained:
    from headstart.training.mirroring import settle_flip
    from headstart.training.tuning import pixels_of, recipe_of, start_from_probe, tune

    start = start_from_probe(task)
    inputs = pixels_of(task, flip=settle_flip(task))
    return tune(task, task.backbone, None, start, inputs, recipe_of(task, RECIPE))


FINE_TUNE = Strategy(
    name="fine-tune",
    help="all weights are trained, from the pre-trained ones",
    run=_run,
    uses=FEATURES | GRADIENT | PRETRAINED,
    recipe=RECIPE,
    by_gradient=True,
)
