"""The learning rate schedule, as a factor on the learning rate of each parameter group."""

from __future__ import annotations

from edgeembed.config import OptimSection


def learning_rate_factor(step: int, *, steps_per_epoch: int, total_steps: int, section: OptimSection) -> float:
    """Factor on every learning rate at a step of a stage: linear warm-up, then decay to `final_lr_factor`.

    Without `decay_epochs` the decay lasts from the end of the warm-up to the end of the stage. With it, the decay lasts
    so many epochs, of which earlier stages have had `decay_first_epoch`; a warm-up replaces its first part.
    """
    # At least the last step is part of the decay.
    warmup = min(section.warmup_epochs * steps_per_epoch, total_steps - 1)
    if step < warmup:
        return section.warmup_start_factor + (1.0 - section.warmup_start_factor) * step / warmup
    if section.decay_by == "epoch":
        step = step // steps_per_epoch * steps_per_epoch
    if section.decay_epochs is None:
        progress = max(0.0, step - warmup) / max(1.0, total_steps - warmup)
    else:
        progress = (section.decay_first_epoch + step / steps_per_epoch) / section.decay_epochs
    return section.decay_factor(progress)
