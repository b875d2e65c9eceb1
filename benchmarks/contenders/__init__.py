"""One module for each way of making batches. Each is run as ``python -m`` and ends with one line of JSON."""
