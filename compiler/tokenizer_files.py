"""What an engine needs of a checkpoint's tokenizer: its files, the ids that end a text, the sampling its authors advise."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from slipway.compiler.checkpoint import Checkpoint
from slipway.compiler.errors import UserError
from slipway.runtime import manifest

SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


def write_tokenizer(checkpoint: Checkpoint, folder: pathlib.Path) -> manifest.Tokenizer | None:
    """Fills tokenizer/ of an engine; None for a checkpoint without a tokenizer.json."""
    source = checkpoint.directory / "tokenizer.json"
    if not source.exists():
        return None
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(source.read_bytes())
    config = _json(checkpoint.directory / "tokenizer_config.json")
    template = _chat_template(checkpoint.directory, config)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    special = {name: _token_text(config[name]) for name in SPECIAL_TOKENS if config.get(name)}
    return manifest.Tokenizer(end_token_ids(checkpoint), special, True, template is not None)


def end_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Ids that end a completion: the generation config's, else the model config's."""
    ids = _json(checkpoint.directory / "generation_config.json").get("eos_token_id", checkpoint.config.eos_token_id)
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)


def default_sampling(checkpoint: Checkpoint, recipe_sampling: dict[str, Any]) -> dict[str, Any]:
    """The generation config's sampling, if it samples, under what the recipe states."""
    generation = _json(checkpoint.directory / "generation_config.json")
    advised = {k: generation[k] for k in SAMPLING_KEYS if generation.get(k) is not None} if generation.get("do_sample") else {}
    return advised | {k: v for k, v in recipe_sampling.items() if v is not None}


def _chat_template(directory: pathlib.Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name: [{"name": "default", "template": ...}]
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _token_text(token: str | dict[str, Any]) -> str:
    return token["content"] if isinstance(token, dict) else token


def _json(path: pathlib.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(str(path), f"not JSON: {error}", hint="download the checkpoint again") from None
