"""The mathematics of the algorithms as pure functions of tensors: masks, advantages, losses. Imports torch alone."""
