"""Pages and pictures: a run's report, its model card, the experiments' report, the README's table."""

from spela.reports.page import write_pages
from spela.reports.readme import check_readme, update_readme

__all__ = ["check_readme", "update_readme", "write_pages"]
