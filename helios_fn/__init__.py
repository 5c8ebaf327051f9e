"""helios_fn: exact, functional training for PyTorch."""
