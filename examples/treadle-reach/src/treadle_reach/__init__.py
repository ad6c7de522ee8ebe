"""Everything that a package of one's own can add to Treadle, each part found by an entry point.

Simulator workers import this package. It imports neither torch nor Treadle's policies.
"""
