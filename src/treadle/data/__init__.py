"""The named data that flow through Treadle.

`scenario` and `observation` and `step` need numpy alone, so that a simulator can use them without torch;
`rollout` holds tensors.
"""
