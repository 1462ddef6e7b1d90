"""Apache Airflow provider for Whisul, an asynchronous music-generation API."""

__version__ = "0.1.0"
