"""Drawn street scenes and the tiny CLIP that is trained on them."""
