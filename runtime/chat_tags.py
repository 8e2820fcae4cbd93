"""The tag of Hugging Face's chat templates that Jinja does not have: {% generation %} ... {% endgeneration %}."""

from jinja2 import nodes
from jinja2.ext import Extension


class Generation(Extension):
    """Marks what the assistant said, for training. A prompt has the text as it is; names set inside stay inside, as in transformers."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("text_of"), [], [], body).set_lineno(line)

    def text_of(self, caller) -> str:
        return caller()
