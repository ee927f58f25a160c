"""Tables, figures and the HTML page of a run."""

from lifelong.report.write import matrix_json, write_report

__all__ = ["matrix_json", "write_report"]
