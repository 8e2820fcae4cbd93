"""Messages to a prompt, through the model's own chat template in a sandbox."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence

from slipway.runtime.errors import RequestError


class ChatTemplate:
    """source: Jinja2, as Hugging Face writes it, under the settings of transformers. names: special tokens it may use ("bos_token").

    Raises RequestError for a source that is no template.
    """

    def __init__(self, source: str, names: Mapping[str, str]):
        from jinja2 import TemplateSyntaxError  # jinja2 is slow to import, and most requests are not chats
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        from slipway.runtime.chat_tags import Generation

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            self.template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise RequestError("chat template", f"line {error.lineno}: {error.message}", "a Jinja template") from None
        self.names = dict(names)

    def render(self, messages: Sequence[Mapping], *, add_generation_prompt: bool = True, tools=None, **values) -> str:
        """The prompt. values: whatever else the template reads ("enable_thinking"). Raises RequestError."""
        from jinja2 import TemplateError

        check(messages)
        try:
            return self.template.render(
                messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, **self.names, **values
            )
        except (TemplateError, TypeError) as error:  # TypeError: a message of a shape the template does not expect
            raise RequestError("chat template", f"does not take these messages ({error})") from error


def refuse(message: str):
    raise RequestError("chat template", message)


def check(messages: object) -> None:
    well_formed = isinstance(messages, Sequence) and not isinstance(messages, str)
    if not well_formed or not all(isinstance(message, Mapping) and "role" in message for message in messages):
        raise RequestError("messages", f"{messages!r:.60}", 'a list of {"role": ..., "content": ...}')
