"""What an engine needs of a checkpoint's tokenizer: its files, the ids that end a text, the sampling its authors advise."""

from __future__ import annotations

import pathlib
from typing import Any

from pydantic import ValidationError
from tokenizers import Tokenizer

from slipway.compiler.checkpoint import Checkpoint, read_json
from slipway.compiler.errors import UserError
from slipway.recipes.problems import UserErrors, shown, translate
from slipway.recipes.schema import Sampling
from slipway.recipes.source import Document
from slipway.runtime import manifest, vocabulary
from slipway.runtime.vocabulary import Vocabulary

SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
TOKENIZER = "tokenizer.json"
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


def check(checkpoint: Checkpoint) -> None:
    """Raises UserError for tokenizer files that no engine could use."""
    end_token_ids(checkpoint)
    if has_tokenizer(checkpoint):
        read_vocabulary(checkpoint)
        config = _json(checkpoint.directory / "tokenizer_config.json")
        _chat_template(checkpoint.directory, config)
        _special_tokens(checkpoint.directory, config)


def has_tokenizer(checkpoint: Checkpoint) -> bool:
    return (checkpoint.directory / TOKENIZER).exists()


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    path = checkpoint.directory / TOKENIZER
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(str(path), f"not a tokenizer: {error}", hint="download the checkpoint again") from None


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    tokenizer = read_tokenizer(checkpoint)
    try:
        return vocabulary.read_vocabulary(tokenizer)
    except (UnicodeError, LookupError, TypeError) as error:
        raise UserError(str(checkpoint.directory / TOKENIZER), f"tokens without bytes: {error}", hint="download the checkpoint again") from None


def write_tokenizer(checkpoint: Checkpoint, folder: pathlib.Path) -> manifest.Tokenizer | None:
    """Fills tokenizer/ of an engine; None for a checkpoint without a tokenizer.json."""
    if not has_tokenizer(checkpoint):
        return None
    folder.mkdir()
    (folder / TOKENIZER).write_bytes((checkpoint.directory / TOKENIZER).read_bytes())
    read_vocabulary(checkpoint).write(folder / vocabulary.FILE_NAME)
    config = _json(checkpoint.directory / "tokenizer_config.json")
    template = _chat_template(checkpoint.directory, config)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    special = _special_tokens(checkpoint.directory, config)
    return manifest.Tokenizer(end_token_ids(checkpoint), special, True, template is not None)


def end_token_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Ids that end a completion: the generation config's, else the model config's. Raises UserError for what is no token."""
    path, generation = _generation_config(checkpoint)
    ids = generation.get("eos_token_id")
    if ids is None:
        path, ids = checkpoint.directory / "config.json", getattr(checkpoint.config, "eos_token_id", None)
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    size = checkpoint.config.get_text_config().vocab_size
    for token in ids:
        if type(token) is not int or not 0 <= token < size:
            raise UserError(f"{path}: eos_token_id", shown(token), f"token ids in 0..{size - 1}", "correct the checkpoint's file")
    return tuple(ids)


def default_sampling(checkpoint: Checkpoint, stated: Sampling) -> dict[str, Any]:
    """The generation config's sampling, if it samples, under what the recipe states. Raises UserError for values out of range."""
    path, generation = _generation_config(checkpoint)
    advised = {k: generation[k] for k in SAMPLING_KEYS if generation.get(k) is not None} if generation.get("do_sample") else {}
    settled = advised | stated.model_dump(exclude_none=True)
    try:
        Sampling.model_validate(settled)
    except ValidationError as error:
        problems = translate(error, Sampling, Document(settled, {(): str(path)}))
        UserErrors.check([UserError(p.where, p.found, p.expected, "a value in the recipe's sampling goes before it") for p in problems])
    return settled


def _generation_config(checkpoint: Checkpoint) -> tuple[pathlib.Path, dict[str, Any]]:
    path = checkpoint.directory / "generation_config.json"
    return path, _json(path)


def _chat_template(directory: pathlib.Path, config: dict[str, Any]) -> str | None:
    path, template = directory / "chat_template.jinja", None
    if path.exists():
        try:
            template = path.read_text()
        except UnicodeDecodeError as error:
            raise UserError(str(path), f"byte {error.start} is not UTF-8", "a Jinja template") from None
    else:
        path, template = directory / "tokenizer_config.json", config.get("chat_template")
        if isinstance(template, list):  # several by name: [{"name": "default", "template": ...}]
            template = next((entry.get("template") for entry in template if isinstance(entry, dict) and entry.get("name") == "default"), None)
    if not isinstance(template, str | None):
        raise UserError(f"{path}: chat_template", shown(template), "a Jinja template")
    return template


def _special_tokens(directory: pathlib.Path, config: dict[str, Any]) -> dict[str, str]:
    """What a chat template may name: {"bos_token": "<s>"}."""
    found = {name: config[name] for name in SPECIAL_TOKENS if config.get(name)}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise UserError(f"{directory / 'tokenizer_config.json'}: {name}", shown(found[name]), "a token's text")
    return texts


def _json(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
