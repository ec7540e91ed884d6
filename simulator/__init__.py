"""A simulated shop, the demo, the benchmarks and the evaluation: clients of everything else."""
