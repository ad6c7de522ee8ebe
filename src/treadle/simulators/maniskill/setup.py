"""What ManiSkill's environment needs beside packages: a Vulkan driver that runs its shaders. Standard library alone."""

from treadle.environments.mesa import prepare_vulkan as prepare

__all__ = ["prepare"]
