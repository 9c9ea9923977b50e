"""PaliGemma from scratch."""
