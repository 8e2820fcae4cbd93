"""Turns a plugin's launch template and a kernel's constants into its C++ or CUDA source and its symbol."""

from __future__ import annotations

import pathlib
import re

import jinja2
import torch

from slipway.compiler.target import Target

CPP_TYPES = {torch.bfloat16: "bf16", torch.float32: "float"}


def render(plugin_file: str, target: Target, **constants: object) -> str:
    """launch.host.j2 or launch.cuda.j2 beside `plugin_file` with its constants; an unknown or missing name is an error."""
    template = pathlib.Path(plugin_file).with_name("launch.cuda.j2" if target.gpu else "launch.host.j2").read_text()
    return jinja2.Template(template, undefined=jinja2.StrictUndefined, keep_trailing_newline=True).render(constants)


def symbol(op: str, *parameters: object) -> str:
    """A C name that says op and parameters; different parameters give different names."""
    return "_".join([op, *(re.sub(r"\W", lambda m: {"-": "m", ".": "p", "+": ""}[m[0]], _word(p)) for p in parameters)])


def _word(parameter: object) -> str:
    return CPP_TYPES[parameter] if isinstance(parameter, torch.dtype) else str(parameter)
