"""Offline phase: IQL, TD3+BC and the artefact that they leave."""

from finflow_sb3.quiet import import_d3rlpy

import_d3rlpy()  # first of all: the modules here import its parts
