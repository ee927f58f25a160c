"""Tables, figures and the HTML page of a run."""

from lifelong.report.write import altered_matrix, matrix_json, write_report

__all__ = ["altered_matrix", "matrix_json", "write_report"]
