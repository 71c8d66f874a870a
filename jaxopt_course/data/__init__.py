"""On what: real and synthetic images as NumPy arrays, and the plan of minibatches."""

from jaxopt_course.data.archives import DataFileError
from jaxopt_course.data.batches import BatchPlan, minibatches, shuffled
from jaxopt_course.data.datasets import DATASETS, Dataset, load

__all__ = ["DATASETS", "BatchPlan", "DataFileError", "Dataset", "load", "minibatches", "shuffled"]
