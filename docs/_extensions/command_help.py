"""The `--help` of a command, as it prints: those texts are written to teach."""

from click.testing import CliRunner
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from keras_bn_cli.program import program


class CommandHelp(SphinxDirective):
    """`{command-help}` of a command's name, or of nothing for the program itself."""

    optional_arguments = 1

    def run(self):
        result = CliRunner().invoke(
            program,
            [*self.arguments, "--help"],
            prog_name="keras-bn",
            terminal_width=88,
            max_content_width=88,
        )
        text = result.output.strip()
        block = nodes.literal_block(text, text)
        block["language"] = "text"
        return [block]


def setup(app):
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
