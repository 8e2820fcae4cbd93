"""Lets the tests of this folder import sanitized and written_plan under --import-mode=importlib."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parent))
