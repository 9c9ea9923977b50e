"""What makes it fast: compiled steps and products (fast.py), `torch.compile` (compiled.py), what both check before a
step (step.py), and the benchmark that measures them."""
