"""The files that a training keeps in its folder."""

__all__ = [
    "ADVICE",
    "CHECKPOINT",
    "FOLDS",
    "HISTORY",
    "PLAN",
    "START",
    "TENSORBOARD",
    "TRAINING",
    "WHOLE",
]

# Of one with epochs.
HISTORY, TENSORBOARD = "history.jsonl", "tensorboard"
# Of one that is being trained: how it began, the cut chosen by measured time, the state.
START, PLAN, CHECKPOINT = "start.json", "plan.json", "checkpoint.safetensors"
# The folder of the second training, on all images; it has a state of its own.
WHOLE = "whole"
# The folder of the trainings of `folds`: a file of each that is done, and the state of the next one.
FOLDS = "folds"
TRAINING = (HISTORY, TENSORBOARD, START, PLAN, CHECKPOINT, WHOLE, FOLDS)
# To those whose disk is full or who may not write there.
ADVICE = "choose another folder"
