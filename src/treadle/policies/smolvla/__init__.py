"""SmolVLA (Shukor et al. 2025, arXiv:2506.01844) with the numbers of lerobot 0.4.4, without lerobot."""

from treadle.policies.smolvla.policy import SmolVLA

__all__ = ["SmolVLA"]
