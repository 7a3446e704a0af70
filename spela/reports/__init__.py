"""The report of the paper's experiments: plots, an HTML and a Markdown page, the README's table."""

from spela.reports.page import write_pages
from spela.reports.readme import check_readme, update_readme

__all__ = ["check_readme", "update_readme", "write_pages"]
