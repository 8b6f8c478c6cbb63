"""Checkpoints: readable by the safetensors library, whole or absent, exact after a round trip."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from edgeembed.errors import UserError
from edgeembed.network.tensor_files import iterate_tensors, load_module, save_tensors
from edgeembed.run_folder import RunFolder
from edgeembed.training.checkpoints import load_checkpoint, save_checkpoint

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(3, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.zeros((0, 5)),
    "permuted": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "flag": torch.tensor([True, False]),
}


def test_the_safetensors_library_reads_what_is_streamed(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", TENSORS, metadata={"space_id": "abc"})
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_nothing_is_left_when_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        save_tensors(tmp_path / "x.safetensors", {"c": torch.zeros(1, dtype=torch.complex64)})
    broken = torch.zeros(3).to_sparse()
    with pytest.raises((NotImplementedError, RuntimeError)):
        save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(3), "s": broken})
    assert list(tmp_path.iterdir()) == []


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    image = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    model(image).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)).to(
        memory_format=torch.channels_last
    )
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)


def test_a_restored_run_takes_the_same_step_with_channels_last_weights(tmp_path: Path) -> None:
    run = RunFolder(path=tmp_path)
    model, optimizer = build()
    step(model, optimizer, 1)
    save_checkpoint(run, step=1, model=model, optimizers=[optimizer], keep=2, state={"note": 5})
    step(model, optimizer, 2)
    again, its_optimizer = build()
    state = load_checkpoint(run, model=again, optimizers=[its_optimizer])
    assert state == {"step": 1, "note": 5}
    step(again, its_optimizer, 2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_only_the_newest_checkpoints_are_kept_and_partial_ones_are_not_seen(tmp_path: Path) -> None:
    run = RunFolder(path=tmp_path)
    model, optimizer = build()
    for number in (1, 2, 3):
        save_checkpoint(run, step=number, model=model, optimizers=[optimizer], keep=2, state={})
    (tmp_path / "checkpoints" / ".step-00000009.123").mkdir()
    assert [path.name for path in run.checkpoints()] == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("content", [b"", b"\x00" * 20, b"\xff" * 64])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        list(iterate_tensors(tmp_path / "x.safetensors"))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", {"weight": torch.zeros(2, 2)})
    with pytest.raises(UserError, match="'weight' does not fit"):
        load_module(nn.Linear(3, 3), tmp_path / "x.safetensors")
    save_tensors(tmp_path / "x.safetensors", {"weight": torch.zeros(3, 3)})
    with pytest.raises(UserError, match="lacks tensor 'bias'"):
        load_module(nn.Linear(3, 3), tmp_path / "x.safetensors")
