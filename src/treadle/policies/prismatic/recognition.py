"""OpenVLA or OpenVLA-OFT: the published directories of both have the same config.json, so other things must tell."""

from enum import Enum
from pathlib import Path
from typing import Any

from treadle.policies.prismatic.load import has_published_parts

CODE = "modeling_prismatic.py"
"""The published model as remote code, beside the weights."""
OFT_NAMES = ("NUM_ACTIONS_CHUNK", "_regression_or_discrete_prediction", "set_num_images_in_input")
"""What only OpenVLA-OFT's code has, in any of the copies that training frameworks leave."""


DOUBT = "if it is OpenVLA-OFT with action tokens, say policy.kind=openvla_oft"


class Family(Enum):
    """What a published directory holds."""

    OPENVLA = "openvla"
    OFT = "openvla_oft"
    UNKNOWN = "either"


def recognize(directory: Path, config: dict[str, Any]) -> tuple[Family, str]:
    """What a published directory holds, and what tells so."""
    if has_published_parts(directory):
        return Family.OFT, "it has .pt parts"
    if config.get("num_action_chunks") not in (None, 1):
        return Family.OFT, "config.json has num_action_chunks"
    for path in sorted(directory.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for name in OFT_NAMES:
            if name in text:
                return Family.OFT, f"{path.name} has {name}"
    if str(config.get("llm_backbone_id")).startswith("vicuna"):
        return Family.OPENVLA, "config.json has a Vicuna as llm_backbone_id"
    auto_map = config.get("auto_map")
    for value in auto_map.values() if isinstance(auto_map, dict) else ():
        repository, _, code = str(value).rpartition("--")
        if repository and code.startswith(CODE.removesuffix(".py")):
            return (Family.OFT if "oft" in repository.lower() else Family.OPENVLA), f"config.json has auto_map {value}"
    if (directory / CODE).is_file():
        return Family.OPENVLA, f"{CODE} is its code"
    return Family.UNKNOWN, f"no .pt parts, {CODE} or auto_map tell it from OpenVLA-OFT"
