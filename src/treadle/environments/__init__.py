"""The Python interpreters that simulators run in: their virtual environments, and what these need of the system."""
