"""The typed configuration. Reading it imports neither torch nor a simulator."""
