"""One crew of simulator workers, in threads or processes, in any interpreter. Imports numpy, never torch."""
