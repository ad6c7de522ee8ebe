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
        return Family.OFT, "its .pt parts"
    if config.get("num_action_chunks") not in (None, 1):
        return Family.OFT, "num_action_chunks in config.json"
    for path in sorted(directory.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for name in OFT_NAMES:
            if name in text:
                return Family.OFT, f"{name} in {path.name}"
    if str(config.get("llm_backbone_id")).startswith("vicuna"):
        return Family.OPENVLA, "llm_backbone_id in config.json: a Vicuna"
    auto_map = config.get("auto_map")
    for value in auto_map.values() if isinstance(auto_map, dict) else ():
        repository, _, code = str(value).rpartition("--")
        if repository and code.startswith(CODE.removesuffix(".py")):
            return (Family.OFT if "oft" in repository.lower() else Family.OPENVLA), f"auto_map in config.json: {value}"
    if (directory / CODE).is_file():
        return Family.OPENVLA, CODE
    return Family.UNKNOWN, f"neither .pt parts nor {CODE} nor auto_map tell it from OpenVLA-OFT"
