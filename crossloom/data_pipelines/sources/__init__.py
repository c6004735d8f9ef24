"""Sources: converters from published data sets to shards, one module each.

Each module's docstring shows the files it reads, and its ``convert(input, out, **options)``
returns a :class:`~crossloom.data_pipelines.sources.common.Report`.
"""

from crossloom.data_pipelines.sources.common import Conversion, Report, Skipped, SourceError

__all__ = ["Conversion", "Report", "Skipped", "SourceError"]
