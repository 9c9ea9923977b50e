"""Notebooks under pytest: cells run as in Jupyter, where a last line that ends in `;` shows no value.

nbval runs cells without keeping a history, and IPython looks for that `;` in the history. Without this, every figure
cell that ends so fails with "Unexpected output fields".
"""

try:
    from nbval.kernel import RunningKernel
except ImportError:  # nbval is not installed: no notebooks are run
    RunningKernel = None


def execute_cell_input(self, cell_input, allow_stdin=None):
    """As nbval's own, with a history. Returns the id of the kernel's reply."""
    return self.kc.execute(cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


if RunningKernel is not None:
    RunningKernel.execute_cell_input = execute_cell_input
