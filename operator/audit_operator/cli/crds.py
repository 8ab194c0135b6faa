"""`audit-operator crds`: the CustomResourceDefinitions and the reference page, as the models make them."""

from typing import TextIO

import yaml

from audit_operator.cli.errors import CliError
from audit_operator.cli.output import JSON, print_json, write_file, write_files
from audit_operator.resources.crd import crds as definitions
from audit_operator.resources.crd import reference as reference_page


def crds(output: str, *, reference: bool, stream: TextIO) -> None:
    """Write them to ``output``: a folder (a file for the page), ``json``, or empty for ``stream``. Raises CliError."""
    if reference and output == JSON:
        raise CliError("the reference is a page of Markdown", way_out="leave out --reference, or name a file with -o")
    files = {} if reference else definitions()
    if output == JSON:
        print_json([yaml.safe_load(text) for text in files.values()])
    elif not output:
        stream.write(reference_page() if reference else "".join(files.values()))
    elif reference:
        write_file(output, reference_page())
    else:
        write_files(output, files)
