"""Put-on-plate with a WidowX arm: a training set, and sixteen settings out of its distribution (arXiv 2505.19789)."""
