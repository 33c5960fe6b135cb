"""A package, since torch-fidelity installs one of this name, which would stand before a folder without this file."""
