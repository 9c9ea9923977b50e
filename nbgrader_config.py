"""nbgrader for a class: run its commands in the folder of this file. docs/teaching.md says how."""

c = get_config()  # noqa: F821  (nbgrader defines it)

c.CourseDirectory.course_id = "paligemma"

# A cell that never ends is interrupted, counts as wrong, and the rest of the notebook goes on.
c.ExecutePreprocessor.timeout = 120
c.ExecutePreprocessor.interrupt_on_timeout = True

# The stub of the exercises in notebooks/exercises, which is nbgrader's own.
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\nraise NotImplementedError()"}
