"""Other projects' implementations, wrapped as independent oracles for tests and benchmarks."""
