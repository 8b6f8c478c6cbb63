"""Learning rate schedules as a factor of each parameter group's learning rate."""

from __future__ import annotations

from edgeembed.config import OptimSection


def rate_factor(step: int, *, steps_per_epoch: int, total_steps: int, section: OptimSection) -> float:
    """Factor on every learning rate at a step of a stage: linear warm-up, then decay to `final_lr_factor`.

    Without `decay_epochs` the decay spans the stage after the warm-up. With it, the decay spans so many epochs, and the
    stage starts at epoch `decay_first_epoch` of it; a warm-up replaces the first part.
    """
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
