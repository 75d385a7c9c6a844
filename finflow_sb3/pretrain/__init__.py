"""Offline phase: IQL, TD3+BC and the artefact that they leave."""
