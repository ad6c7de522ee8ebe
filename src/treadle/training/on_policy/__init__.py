"""PPO and GRPO: updates from rollouts of the present policy, or of one a little older."""
