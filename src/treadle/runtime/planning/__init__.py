"""How long a run's iterations will take, before it starts: profiles of its roles, and the timeline that follows."""
