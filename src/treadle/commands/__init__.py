"""What the command line does beyond calling the library: help, tables, films."""
