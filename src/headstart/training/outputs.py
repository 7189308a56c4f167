"""The files that a training keeps in its folder."""

__all__ = ["ADVICE", "CHECKPOINT", "HISTORY", "PLAN", "START", "TENSORBOARD", "TRAINING"]

# Of one with epochs.
HISTORY, TENSORBOARD = "history.jsonl", "tensorboard"
# Of one that is being trained: how it began, the cut chosen by measured time, the state.
START, PLAN, CHECKPOINT = "start.json", "plan.json", "checkpoint.safetensors"
TRAINING = (HISTORY, TENSORBOARD, START, PLAN, CHECKPOINT)
# To those whose disk is full or who may not write there.
ADVICE = "choose another folder"
