"""Pages and pictures: a run's report, its model card, the experiments' report, tables in pages."""

from spela.reports.page import write_pages
from spela.reports.readme import check_pages, update_pages

__all__ = ["check_pages", "update_pages", "write_pages"]
