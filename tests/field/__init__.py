"""Trainings as people write them, with every trainer: asked, stopped, killed, resumed, and compared with themselves."""
