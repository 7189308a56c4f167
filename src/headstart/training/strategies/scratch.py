"""All weights are trained from random ones: `scratch`.

For many images that are unlike those that any network was trained on.
"""

from headstart.training.recipes import Recipe
from headstart.training.task import GRADIENT, IMAGES, Strategy, Task, Trained

__all__ = ["SCRATCH"]

RECIPE = Recipe(epochs=60, batch=64, lr=2e-3, weight_decay=0.05, clip=1.0, monitor="accuracy")


def _run(task: Task) -> Trained:
    from headstart.training.tuning import pixels_of, recipe_for, start_at_random, tune

    start = start_at_random(task)
    plain = task.settings.augment == "none"
    task.settle_default("flip", "no" if plain else "yes")  # there is no probe to ask
    inputs = pixels_of(task, flip=task.settings.flip != "no")
    return tune(task, task.backbone, None, start, inputs, recipe_for(task, RECIPE))


SCRATCH = Strategy(
    name="scratch",
    help="all weights are trained, from random ones",
    run=_run,
    uses=IMAGES | GRADIENT,
    recipe=RECIPE,
    by_gradient=True,
    reads="pixels",
    random_weights=True,
    better=("partial-fine-tune", "starts from pre-trained weights"),
)
