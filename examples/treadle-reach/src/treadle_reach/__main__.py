"""`python -m treadle_reach FOLDER [SEED]`: a checkpoint of a fresh policy for this package's simulator."""

import sys
from pathlib import Path

import torch

from treadle_reach.policy import GaussianPolicy
from treadle_reach.simulator import Reach


def write_fresh_policy(directory: Path, seed: int = 0) -> None:
    """Write a policy with random weights, of the sizes that the simulator asks for."""
    torch.manual_seed(seed)
    spec = Reach(slots=1).spec
    GaussianPolicy(proprioception_dim=spec.proprioception_dim, action_dim=spec.action_dim).save(directory)


if __name__ == "__main__":
    write_fresh_policy(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
