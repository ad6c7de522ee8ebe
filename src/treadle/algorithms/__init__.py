"""The mathematics of PPO as pure functions of tensors: masks, advantages, losses. Imports nothing but torch."""
