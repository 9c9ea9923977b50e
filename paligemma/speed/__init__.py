"""What makes it fast: a compiled decoding step and prompt, `torch.compile`, and the benchmark that measures them."""
