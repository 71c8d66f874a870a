"""Data sets: real and synthetic images as NumPy arrays, and plans of minibatches."""

from jaxopt_course.data.archives import DataFileError
from jaxopt_course.data.batches import BatchPlan, minibatches, shuffled
from jaxopt_course.data.datasets import DATASETS, Dataset, load
from jaxopt_course.data.statistics import feature_statistics

__all__ = ["DATASETS", "BatchPlan", "DataFileError", "Dataset", "feature_statistics", "load", "minibatches", "shuffled"]


def __dir__() -> list[str]:
    return __all__
