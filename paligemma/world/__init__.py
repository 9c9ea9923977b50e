"""The little world of coloured shapes: scenes, questions about them, the small model that knows it, its evaluation."""
