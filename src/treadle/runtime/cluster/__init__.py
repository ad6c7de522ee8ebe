"""A run of several processes: its members are Ray actors, on one machine or on many."""
