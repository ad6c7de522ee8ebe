"""Training: the loop, reinforcement-learning updates, the supervised stage."""
