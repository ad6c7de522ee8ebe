"""The loop of reinforcement learning, and its roles: player, trainer, evaluator, recorder."""
