"""The checks of the exercises: they compare a learner's code with the package and recognise the usual mistakes.

    from paligemma.exercises import check, progress
    check("06.1", rms_norm)     # says what it saw, what that usually means, and where to look
    predict("16.3", 4)          # what you expect, kept and shown beside the truth when you have passed
    progress()                  # which tasks are done
    mine("FOLDER")              # checks the code that you typed from the video (see mycode/)

The tasks of chapter NN are in chNN.py; checking.py does the work.
"""

from .checking import CheckFailed, NotStarted, check
from .mycode import mine
from .predicting import predict
from .progress import progress, reset

__all__ = ["CheckFailed", "NotStarted", "check", "mine", "predict", "progress", "reset"]
