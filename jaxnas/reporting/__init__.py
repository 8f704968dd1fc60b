"""Reports of a run: the run directory's files, plots, drawings, progress; it computes nothing."""

from jaxnas.reporting.chains import draw_chain
from jaxnas.reporting.checklist import CHECKLIST, write_checklist
from jaxnas.reporting.dags import draw_dag
from jaxnas.reporting.fronts import MAX_NETWORKS, front_svg, plot_fronts, write_front
from jaxnas.reporting.graphs import draw_genotype, to_dot
from jaxnas.reporting.html import smaller_is_better, welch_interval, write_report
from jaxnas.reporting.metrics import KINDS, MetricsWriter, read_metrics, truncate
from jaxnas.reporting.plots import (OPERATION_COLORS, edge_names, operation_color, plot_alphas,
                                    plot_curves, plot_groups, require_matplotlib)
from jaxnas.reporting.progress import Phase, Progress
from jaxnas.reporting.result import (SCHEMA, Architecture, Device, Evaluations, Metric, Published,
                                     Result, Seconds, StepSeconds, Summary, read_result, summarize,
                                     validate_run_directory, write_result)

__all__ = [
    "CHECKLIST", "KINDS", "MAX_NETWORKS", "OPERATION_COLORS", "SCHEMA", "Architecture", "Device",
    "Evaluations", "Metric", "MetricsWriter", "Phase", "Progress", "Published", "Result",
    "Seconds", "StepSeconds", "Summary", "draw_chain", "draw_dag", "draw_genotype", "edge_names",
    "front_svg", "operation_color", "plot_alphas", "plot_curves", "plot_fronts", "plot_groups",
    "read_metrics", "read_result", "require_matplotlib", "smaller_is_better", "summarize", "to_dot",
    "truncate", "validate_run_directory", "welch_interval", "write_checklist", "write_front",
    "write_report", "write_result",
]
