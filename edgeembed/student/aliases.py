"""Short names of students: timm networks that suit small devices. Without torch."""

from __future__ import annotations

from edgeembed.network.model_names import require_timm_model, require_weights

ALIASES: dict[str, str] = {
    "vit_b16": "vit_base_patch16_224",
    "vit_s16": "vit_small_patch16_224",
    "vit_t16": "vit_tiny_patch16_224",
    "tiny_vit_5m": "tiny_vit_5m_224",
    "tiny_vit_11m": "tiny_vit_11m_224",
    "mobilenetv4_s": "mobilenetv4_conv_small",
    "mobilenetv4_m": "mobilenetv4_conv_medium",
    "mobilenetv4_hybrid_m": "mobilenetv4_hybrid_medium",
    "fastvit_t8": "fastvit_t8",
    "fastvit_sa12": "fastvit_sa12",
    "repvit_m1": "repvit_m1",
    "repvit_m1_1": "repvit_m1_1",
    "efficientformerv2_s0": "efficientformerv2_s0",
    "efficientnet_b0": "efficientnet_b0",
    "lite0_xs": "tf_efficientnet_lite0",
    "lite0_s": "tf_efficientnet_lite0",
    "lite0_hybrid": "tf_efficientnet_lite0",
    "lite0": "tf_efficientnet_lite0",
    "lite2": "tf_efficientnet_lite2",
    "lcnet_050": "lcnet_050",
    "mobilenetv3_s050": "mobilenetv3_small_050",
    "mobilenetv4_s035": "mobilenetv4_conv_small_035",
    "mobilenetv4_s050": "mobilenetv4_conv_small_050",
    "tinynet_e": "tinynet_e",
    "mobilevit_xxs": "mobilevit_xxs",
    "resnet_xs": "test_resnet",  # 0.37 M parameters, plain convolutions: learns within minutes on a CPU
    "resnet18": "resnet18",
    "resnet50": "resnet50",
}

BLOCKS: dict[str, int] = {"lite0_xs": 5, "lite0_hybrid": 5, "lite0_s": 6}
"""Aliases of networks that are cut: how many of the first groups of blocks they keep (`network.cut`)."""

ATTENTION_BLOCKS: dict[str, int] = {"lite0_hybrid": 2}
"""Aliases of networks with transformer blocks behind their convolutions: how many (`network.attention`)."""


def timm_model_name(student: str) -> str:
    """Returns the timm name of an alias or a timm model. Raises UserError with the nearest known name."""
    if student not in ALIASES:
        remedy = f"give an alias ({', '.join(ALIASES)}) or any timm model name"
        require_timm_model("student", student, others=ALIASES, remedy=remedy)
    return ALIASES.get(student, student)


def num_blocks_of(student: str) -> int | None:
    """Returns how many of the first blocks an alias keeps; None for all of them."""
    return BLOCKS.get(student)


def num_attention_blocks_of(student: str) -> int | None:
    """Returns how many transformer blocks an alias adds; None for none."""
    return ATTENTION_BLOCKS.get(student)


def require_student(student: str, weights: str) -> None:
    """Raises UserError for a student that does not exist, or that has no such weights."""
    name = timm_model_name(student)
    if weights != "auto":
        require_weights(name, weights, library="timm", key="student.weights")
